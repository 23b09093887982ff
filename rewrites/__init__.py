"""Finding up-sampling in any model, and splicing a replacement in. Knows torch and nothing else."""
