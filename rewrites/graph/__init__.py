"""What the nodes of a captured graph do, and which of its values are enlarged pictures."""
