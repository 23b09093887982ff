"""Inspect, convert, report, fold, save and load: what changes a model, and what undoes it."""
