"""Somebody's model and data: copied, run, read in batches; pictures in outputs."""
