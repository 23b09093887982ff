"""Putting a replacement into a model or a graph."""
