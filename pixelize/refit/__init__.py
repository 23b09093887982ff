"""Repair: the least change of a model's weights that takes the artifact out of its pictures."""
