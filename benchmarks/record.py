"""What every benchmark does alike: quiet libraries, and a record with what is needed to repeat it."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any


def set_up(threads: int) -> None:
    """Threads of torch; libraries keep to themselves."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()


def circumstances() -> dict[str, Any]:
    """Versions of the libraries, the machine in words, the date."""
    from scst.training.run_folder.run_record import versions

    return {"versions": versions(), "machine": cpu(), "date": time.strftime("%Y-%m-%d")}


def cpu() -> str:
    """The processor in words."""
    return f"{platform.machine()}, {os.cpu_count()} cores"


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Write a record where a file was asked for."""
    from scst.data.files import write_json

    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
