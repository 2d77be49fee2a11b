"""Image features kept over epochs: a frozen vision tower computes the same ones every time.

They are stored on disk, one file per model, processor, precision and set of images. The files are mapped into
memory, so the operating system decides how much of them it caches.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scst.data.visible import visible
from scst.errors import RecipeError
from scst.models.families.table import family_of
from scst.models.policy import Policy, base_model
from scst.models.prompts import PromptEncoder
from scst.types import ImageFeatures, PromptBatch

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<II4s")
"""Of an entry: number of tokens, checksum, and a mark."""


@dataclass(frozen=True)
class KeptFeatures:
    """What the cache holds of the images of a batch.

    Attributes:
        keys: B checksums of the encoded images.
        features: B tensors (G, N, D), None for an image that must be computed.
    """

    keys: list[int]
    features: list[torch.Tensor | None]

    def select(self, images: slice) -> KeptFeatures:
        """Those of a part of the batch."""
        return KeptFeatures(self.keys[images], self.features[images])


class FeatureCache:
    """Projected features of every image of a fixed set, computed once.

    An entry holds a checksum of its features and of the picture they were made from, written after the
    features. An entry that was cut short by a kill, or whose image has changed (another picture under the
    same id), fails its checksum and is computed again. Several processes may share a folder: every entry has
    a fixed offset, and all processes write the same numbers there.

    Args:
        folder: of the files; created when it is missing.
        model: its vision tower and projector must be frozen.
        processor: its image settings name the file, as weights and configuration of the vision tower do.
        image_ids: of all images that may be stored; they fix the size of the files.

    Raises:
        RecipeError: when the vision tower or the projector is trained, the folder cannot be created, or the
            features of all images do not fit onto its disk.
    """

    def __init__(self, folder: str | Path, model: torch.nn.Module, processor: Any, image_ids: Sequence[str]):
        inner = base_model(model)
        family = family_of(inner)
        self._vision_config = inner.config.vision_config
        self._parts = family.vision_parts(inner)
        processor = PromptEncoder.of(processor).processor
        self._num_tokens = family.max_image_tokens(processor)
        if any(p.requires_grad for part in self._parts for p in part.parameters()):
            raise RecipeError(
                "feature_cache: the adapter trains the vision tower or the projector, so image features "
                "change at every step: use feature_cache: off, or an adapter of the decoder only"
            )
        ids = sorted(set(map(str, image_ids)))
        self.folder = Path(folder)
        self._slots = {image_id: slot for slot, image_id in enumerate(ids)}
        self._fingerprint = self._fingerprint_of(processor, ids)
        self._array: _Array | None = None
        self.hits = 0
        self.misses = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"feature_cache: {str(folder)!r} cannot be made: {error}") from error
        if not family.varies_image_tokens:
            self._check_room(inner.config)

    def kept(self, image_ids: Sequence[str], encoded: Sequence[bytes]) -> KeptFeatures:
        """What is stored of images, before they are decoded.

        Args:
            image_ids: B ids.
            encoded: B encoded images.
        """
        self._open_existing()
        keys = [zlib.crc32(data) for data in encoded]
        slots = [self._slots.get(str(image_id)) for image_id in image_ids]
        return KeptFeatures(keys, [self._read(slot, key) for slot, key in zip(slots, keys, strict=True)])

    def features(
        self,
        policy: Policy,
        prompts: PromptBatch,
        image_ids: Sequence[str],
        kept: KeptFeatures | None = None,
    ) -> ImageFeatures:
        """Features of B images on the policy's device, from the files where they are stored.

        Args:
            policy: computes what is missing.
            prompts: B prompts; the vision inputs of those with features in ``kept`` are not read.
            image_ids: B ids; one not given to the constructor is computed and not stored.
            kept: what :meth:`kept` has found of these images; None: they are known by their pixels.
        """
        slots = [self._slots.get(str(image_id)) for image_id in image_ids]
        if kept is None:
            keys = [_key_of(image) for image in prompts.vision]
            kept = KeptFeatures(keys, [self._read(slot, key) for slot, key in zip(slots, keys, strict=True)])
        found = {i: features for i, features in enumerate(kept.features) if features is not None}
        missing = [i for i in range(len(slots)) if i not in found]
        self.hits += len(found)
        self.misses += len(missing)
        if missing:
            computed = policy.image_features(prompts.select(torch.tensor(missing)).to(policy.device))
            self._write_all(computed, [slots[i] for i in missing], [kept.keys[i] for i in missing])
            found |= dict(zip(missing, computed, strict=True))
        return [found[i].to(policy.device) for i in range(len(slots))]

    def _check_room(self, config: Any) -> None:
        """Refuse a disk that cannot take the features of all images beside what is there already."""
        weight = next(self._parts[1].parameters())
        each = self._num_tokens * config.get_text_config().hidden_size * weight.element_size()
        there = sum(file.stat().st_blocks * 512 for file in self.folder.glob(f"{self._fingerprint}-*"))
        wanted, free = len(self._slots) * each - there, shutil.disk_usage(self.folder).free
        if wanted > free:
            raise RecipeError(
                f"feature_cache: the features of {len(self._slots):,} images take {wanted / 1e9:,.1f} GB "
                f"more, {str(self.folder)!r} has {free / 1e9:,.1f} GB free: use a larger disk, or "
                "feature_cache: off"
            )

    def _read(self, slot: int | None, key: int) -> torch.Tensor | None:
        if slot is None or self._array is None:
            return None
        return self._array.read(slot, key)

    def _open_existing(self) -> None:
        """Open the file of an earlier run or another process; its name tells shape and precision."""
        if self._array is not None:
            return
        for file in self.folder.glob(f"{self._fingerprint}-*.features"):
            _, dtype, shape = file.stem.split("-")
            levels, _, width = (int(size) for size in shape.split("x"))
            self._array = self._open(torch.empty((levels, 1, width), dtype=getattr(torch, dtype)))

    def _write_all(self, computed: ImageFeatures, slots: Sequence[int | None], keys: Sequence[int]) -> None:
        """Store features. On a full disk the run continues without storing."""
        try:
            for features, slot, key in zip(computed, slots, keys, strict=True):
                if self._array is None:
                    self._array = self._open(features)
                if slot is not None and features.shape[1] <= self._num_tokens:
                    self._array.write(slot, features.detach().cpu().contiguous(), key)
        except OSError as error:
            logger.warning("feature_cache: no longer stored in %s", visible(f"{self.folder}: {error}"))
            self._slots = {}

    def _open(self, features: torch.Tensor) -> _Array:
        """The file of features like these, of any number of tokens up to the largest."""
        largest = features.new_empty((features.shape[0], self._num_tokens, features.shape[2]), device="meta")
        kind = f"{str(features.dtype).removeprefix('torch.')}-{'x'.join(map(str, largest.shape))}"
        return _Array(self.folder / f"{self._fingerprint}-{kind}.features", len(self._slots), largest)

    def _fingerprint_of(self, processor: Any, ids: Sequence[str]) -> str:
        """Of all that decides the features or their places: weights, configuration, image settings, ids."""
        digest = hashlib.blake2b(digest_size=8)
        # Weights alone are not the function: activation, norm epsilon or patch layout can differ.
        digest.update(self._vision_config.to_json_string().encode())
        for part in self._parts:
            for name, tensor in part.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(_bytes_of(tensor.detach().cpu()))
        digest.update(processor.image_processor.to_json_string().encode())
        digest.update("\0".join(ids).encode())
        return digest.hexdigest()


class _Array:
    """A file of ``count`` entries of one size: number of tokens and checksum, then features.

    Writes go through the file and not through the map: a full disk is then an ``OSError`` and not a signal
    that ends the process. The file is sparse: what was never written takes no disk space.

    Args:
        path: of the file; it may exist.
        count: of images.
        largest: (G, N, D) a tensor like the largest entry.
    """

    def __init__(self, path: Path, count: int, largest: torch.Tensor):
        self.levels, _, self.width = largest.shape
        self.dtype = largest.dtype
        self.entry_bytes = _HEADER.size + largest.nbytes
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(file, count * self.entry_bytes)
        self.file = file
        self.map = mmap.mmap(file, count * self.entry_bytes, prot=mmap.PROT_READ)

    def read(self, slot: int, key: int) -> torch.Tensor | None:
        """The features (G, N, D) of an entry; None unless it is complete and made from the picture of this
        key."""
        start = slot * self.entry_bytes
        header = self.map[start : start + _HEADER.size]
        tokens = _HEADER.unpack(header)[0]
        size = self.levels * tokens * self.width * self.dtype.itemsize
        if not 0 < size <= self.entry_bytes - _HEADER.size:
            return None
        start += _HEADER.size
        content = self.map[start : start + size]  # a copy: another process may be writing
        if header != _header(tokens, content, key):
            return None
        return torch.frombuffer(bytearray(content), dtype=self.dtype).view(self.levels, tokens, self.width)

    def write(self, slot: int, features: torch.Tensor, key: int) -> None:
        """Write an entry: features first, then the header that makes them valid."""
        content, start = _bytes_of(features), slot * self.entry_bytes
        _write_fully(self.file, content, start + _HEADER.size)
        _write_fully(self.file, _header(features.shape[1], content, key), start)


def _key_of(vision: Mapping[str, torch.Tensor]) -> int:
    """A checksum of what the vision tower takes for an image."""
    key = 0
    for name in sorted(vision):
        key = zlib.crc32(_bytes_of(vision[name].cpu()), key)
    return key


def _bytes_of(tensor: torch.Tensor) -> bytes:
    """The memory of a tensor on the CPU; numpy has no bfloat16."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _header(tokens: int, features: bytes, key: int) -> bytes:
    """Never all zero: an entry that was never written reads as zeros."""
    return _HEADER.pack(tokens, zlib.crc32(features, key), b"scst")


def _write_fully(file: int, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written
