"""The version: stated here alone, for the package, its metadata and its pages."""

__version__ = "0.1.0"
