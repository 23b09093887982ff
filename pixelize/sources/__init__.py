"""Models by name, inputs from files, weights from files."""
