"""One stored image: its bytes, its content hash, and whether it decodes.

A stored image is ``{"bytes": bytes | None, "path": str | None}``, what ``datasets.Image(decode=False)``
yields.
"""

import hashlib
import io
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from scst.errors import DataError


class StoredImage(TypedDict):
    """Encoded bytes, or the path of the file that holds them."""

    bytes: bytes | None
    path: str | None


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What is decoded. Pillow would also start Ghostscript on an EPS file and try rarely tested decoders."""

MAX_ENCODED_BYTES = 256 * 2**20
"""Above this a file is no picture: nothing larger is read into memory."""


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
    if image is not None and image["bytes"] is not None:
        return image["bytes"]
    if image is None or not image["path"]:
        raise FileNotFoundError("neither image bytes nor a path are stored")
    return read_image_file(Path(image["path"]))


def read_image_file(path: Path) -> bytes:
    """Return the bytes of an image file that has a plausible size.

    Raises:
        OSError: it is missing or unreadable, no regular file (reading a pipe or device may never end), or
            absurdly large.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no regular file")
    if status.st_size > MAX_ENCODED_BYTES:
        raise OSError(f"{path} has {status.st_size} bytes; no image above {MAX_ENCODED_BYTES} is read")
    return path.read_bytes()


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
        path = image["path"] if image else None
        return ImageProbe("", f"image file missing: {path or 'no bytes and no path'}")
    except (OSError, ValueError) as error:
        return ImageProbe("", f"image file cannot be read: {error}")
    return ImageProbe(hashlib.sha256(data).hexdigest(), decoding_problem(data))


def decoding_problem(data: bytes) -> str | None:
    """Return why encoded bytes do not decode to a whole picture, ``None`` when they do."""
    try:
        decode_image(data)
    except DataError as error:
        return str(error)
    return None


def decode_image(data: bytes) -> Image.Image:
    """Return the whole picture that encoded bytes hold, in its own mode.

    Only :data:`IMAGE_FORMATS` are decoded, and a picture beyond Pillow's limit for decompression bombs is
    refused before its pixels are read.

    Raises:
        DataError: saying why there is no picture.
    """
    if not data:
        raise DataError("image is empty (0 bytes)")
    if len(data) > MAX_ENCODED_BYTES:
        raise DataError(f"image has {len(data)} bytes; none above {MAX_ENCODED_BYTES} is read")
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            _refuse_bomb(*image.size)
            image.load()
            return image
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"image does not decode: {type(error).__name__}: none of {', '.join(IMAGE_FORMATS)}"
        ) from error
    except Exception as error:  # decoders raise anything on damaged bytes; the type is reported
        raise DataError(f"image does not decode: {type(error).__name__}: {error}") from error


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise DataError(f"decompression bomb: {width} x {height} pixels, more than {Image.MAX_IMAGE_PIXELS}")


def open_encoded(data: bytes) -> Image.Image:
    """A picture that is decoded when somebody looks at it; at once where it must be turned."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    if image.format == "PNG" and b"eXIf" not in data:  # a PNG is decoded to look for the note on orientation
        return image
    return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """The picture as its camera's note on orientation says, which the datasets library follows, too."""
    turned = image.getexif().get(ExifTags.Base.Orientation) is not None
    return ImageOps.exif_transpose(image) if turned else image
