"""Timing layers and models side by side."""
