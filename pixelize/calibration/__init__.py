"""Fitting converted layers to the model that they came from, on data without labels."""
