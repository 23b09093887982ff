"""Files of weights: read, written back with some tensors replaced and all else as it was, and patched."""
