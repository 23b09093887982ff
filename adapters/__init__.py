"""What third-party libraries need beyond the generic rewrites."""
