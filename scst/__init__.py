"""Two-stage fine-tuning of image captioners: supervised QLoRA, then self-critical sequence training."""

__version__ = "0.2.0"
