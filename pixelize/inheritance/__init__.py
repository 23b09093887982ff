"""A layer from a trained one: its design, its weights, what is known of its input, what it costs."""
