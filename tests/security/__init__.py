"""What must not happen with files, recipes and checkpoints that come from somebody else."""
