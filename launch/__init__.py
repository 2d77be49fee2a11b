"""Command lines of the project; each script also runs by path and under ``accelerate launch``."""
