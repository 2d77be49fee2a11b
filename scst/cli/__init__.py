"""Command lines of the project; each script also runs by path and under ``accelerate launch``.

What the libraries read from the environment is decided here, before any of them is imported. A value that is
set already stays: it was asked for.
"""

import os

# hub libraries, TRL's trainers and Weights & Biases report their use to their makers unless told not to
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
# torch.load makes tensors and plain values only, also where a library asks for whatever a file holds
os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
