"""What recipes train on."""
