"""Seeing what a model computes: captures, each of which gives an fx graph."""
