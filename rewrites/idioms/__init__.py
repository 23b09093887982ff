"""The ways in which models up-sample, each stated as one canonical transposed convolution."""
