"""Finding what up-samples in a captured graph and among a model's modules."""
