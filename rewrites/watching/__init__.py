"""Knowing, in the very call in which it is used, that a value is a resized picture."""
