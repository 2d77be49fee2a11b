"""The commands of the project, one file each: ``scst sft``, ``launch/sft.py`` and ``python -m scst.cli.sft``.

Here belong arguments, help, exit codes and the start of processes. What a command does lies in the packages
below. No module here imports torch before the arguments are checked.

The environment variables that libraries read at import are set here, before any of them is imported. A value
that is set already stays.
"""

import os

# hub libraries, TRL's trainers and Weights & Biases report their use to their makers unless told not to
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
# torch.load makes tensors and plain values only, also where a library asks for whatever a file holds
os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
