"""What scorers with a neural encoder share: finding its checkpoint, loading it, keeping embeddings.

Imports no torch: a wrong model name is reported before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import RewardError

_WEIGHTS = ("*.safetensors", "*.bin")


def require_package(scorer: str, package: str, project: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        RewardError: ``package`` is not installed; the message says which ``project`` to install.
    """
    if importlib.util.find_spec(package) is None:
        raise RewardError(
            f"{scorer} needs the package {package!r}, which is not installed: pip install {project}"
        )


def find_model(scorer: str, model: str | None, example: str) -> str:
    """Check that a checkpoint can exist, without loading it and without using the network.

    Args:
        scorer: who asks, for messages.
        model: a local folder with a ``config.json``, or a hub id, which transformers downloads on loading.
        example: a hub id to name in messages.

    Returns:
        The folder or the id.

    Raises:
        RewardError: no model given, a folder without a checkpoint, neither folder nor hub id, or a hub id
            that is not in the cache while the hub is switched off.
    """
    give = f"give `model_name_or_path`: a local folder, or a hub id such as {example}"
    if not model:
        raise RewardError(f"{scorer}: no model given; {give}")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise RewardError(
                f"{scorer}: expected a checkpoint in {model!r}, found no config.json there; {give}"
            )
        return str(folder)
    _check_hub_id(scorer, str(model), give)
    return str(model)


def _check_hub_id(scorer: str, model: str, give: str) -> None:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        raise RewardError(f"{scorer}: {model!r} is neither a folder nor a hub id; {give}") from None
    if constants.HF_HUB_OFFLINE and not isinstance(cached, str):
        raise RewardError(
            f"{scorer}: {model!r} is no folder and not in the hub cache, and HF_HUB_OFFLINE is set; "
            f"unset it where there is a network, or {give}"
        )


@contextlib.contextmanager
def loading(scorer: str, model: str) -> Iterator[None]:
    """Turn what libraries raise while they load a checkpoint into a RewardError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise RewardError(f"{scorer}: {model!r} cannot be loaded: {type(error).__name__}: {error}") from error


def model_label(model: str) -> str:
    """A checkpoint's name for signatures: the hub id, or a folder's name and six digits of its weights."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"{folder.resolve().name},{digest.hexdigest()[:6]}"


def encodable(text: str) -> str:
    """The text without lone surrogates, which no neural tokeniser takes."""
    return text.encode("utf-8", "replace").decode()


def pick_device(device: str | None) -> Any:
    """The ``torch.device`` asked for; by default this process's GPU, or the CPU."""
    import torch

    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextlib.contextmanager
def inference(device: Any) -> Iterator[None]:
    """Without gradients and without a trainer's autocast, so that scores have the precision they state."""
    import torch

    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def check_pairs(scorer: str, captions: Sequence[str], **others: Sequence[Any] | None) -> None:
    """Refuse columns of another length than the captions.

    Raises:
        RewardError: naming the column and both lengths.
    """
    for name, values in others.items():
        if values is not None and len(values) != len(captions):
            raise RewardError(f"{scorer}: {len(captions)} captions, but {len(values)} {name}: expected equal")


def check_references(scorer: str, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Refuse lists of references that do not fit the captions.

    Raises:
        RewardError: another number of lists, a text instead of a list, or an empty list.
    """
    check_pairs(scorer, captions, references=references)
    for i, group in enumerate(references):
        if isinstance(group, str) or not len(group):
            raise RewardError(f"{scorer}: caption {i} needs a list of one or more references, got {group!r}")


class EmbeddingCache:
    """Embeddings by key; each key of a batch is encoded once, and the last used ``size`` of them are kept.

    Args:
        size: embeddings to keep between batches; 0 keeps none.
    """

    def __init__(self, size: int):
        self.size = size
        self._kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def embed(self, keys: Sequence[Hashable], encode: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        """(N, D) embeddings of N keys.

        Args:
            keys: may repeat.
            encode: (M, D) embeddings of the M distinct keys that are not kept yet.
        """
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            found.update(zip(missing, encode(missing), strict=True))
        self._keep(found)
        return np.stack([found[key] for key in keys])

    def _keep(self, found: dict[Hashable, np.ndarray]) -> None:
        for key, embedding in found.items():
            self._kept[key] = np.array(embedding)  # a copy: a row would keep its whole batch alive
            self._kept.move_to_end(key)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
