"""The generator that ships with the package, and the demonstration on it."""
