"""One stored image: its bytes, its content hash, and whether it decodes.

A stored image is ``{"bytes": bytes | None, "path": str | None}``, what ``datasets.Image(decode=False)``
yields.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

StoredImage = Mapping[str, bytes | str | None]


@dataclass(frozen=True)
class ImageProbe:
    """What was learnt from reading one image.

    Attributes:
        content_hash: sha256 of the encoded bytes, ``""`` when there are none to read.
        problem: why the image cannot be used, ``None`` when it can.
    """

    content_hash: str
    problem: str | None = None


def image_bytes(image: StoredImage | None) -> bytes:
    """Return the encoded bytes of a stored image, from memory or from its file.

    Raises:
        OSError: when there are no bytes and the file is missing, unreadable or not named.
    """
    if image is None or (image["bytes"] is None and not image["path"]):
        raise FileNotFoundError("neither image bytes nor a path are stored")
    if image["bytes"] is not None:
        return image["bytes"]
    return Path(image["path"]).read_bytes()


def content_hash(image: StoredImage | None) -> str:
    """Return the sha256 of the encoded bytes in hexadecimal, ``""`` for an image that cannot be read."""
    try:
        return hashlib.sha256(image_bytes(image)).hexdigest()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return ""


def probe_image(image: StoredImage | None) -> ImageProbe:
    """Read, hash and fully decode one image. Never raises: the problem is part of the answer."""
    try:
        data = image_bytes(image)
    except FileNotFoundError:
        return ImageProbe("", f"image file missing: {(image or {}).get('path') or 'no bytes and no path'}")
    except (OSError, ValueError) as error:
        return ImageProbe("", f"image file cannot be read: {error}")
    return ImageProbe(hashlib.sha256(data).hexdigest(), decoding_problem(data))


def decoding_problem(data: bytes) -> str | None:
    """Return why encoded bytes do not decode to a whole picture, ``None`` when they do.

    A picture beyond Pillow's limit for decompression bombs is refused before its pixels are read.
    """
    if not data:
        return "image is empty (0 bytes)"
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                return f"decompression bomb: {width} x {height} pixels, more than {Image.MAX_IMAGE_PIXELS}"
            image.load()
    except Image.DecompressionBombError as error:
        return f"decompression bomb: {error}"
    except (
        Exception
    ) as error:  # decoders raise anything on damaged bytes; the type is reported, not swallowed
        return f"image does not decode: {type(error).__name__}: {error}"
    return None
