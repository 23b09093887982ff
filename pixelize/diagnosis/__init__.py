"""Which part of a model makes the pattern in its pictures, if any does."""
