"""Small pictures as ``data:`` addresses, for pages that stand alone."""

from __future__ import annotations

import base64
import io

from PIL import Image

THUMBNAIL = 224  # pixels


def thumbnail_uri(image: Image.Image, side: int = THUMBNAIL) -> str:
    """A JPEG of the picture, its longer side at most ``side`` pixels, as a ``data:`` address."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
