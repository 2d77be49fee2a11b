"""The embedded base model and its captions of scenes with one object."""

from __future__ import annotations

import pytest
import torch

from scst.evaluation.captioning import caption_images
from scst.models.base_checkpoint import EMBEDDED_MODEL
from scst.models.pretrained import load_model
from scst.models.processors import load_processor
from tests.support.objects import (
    LIMIT,
    PAINTERS,
    PLACES,
    PROMPT,
    OneObject,
    one_object,
    with_random_weights,
)


@pytest.fixture(scope="package")
def embedded():
    """The embedded base model, trained on scenes with many things, and its processor."""
    torch.set_num_threads(1)
    model = load_model(EMBEDDED_MODEL, quantization="none", precision="fp32")
    return model, load_processor(EMBEDDED_MODEL)


@pytest.fixture(scope="package")
def untrained(embedded):
    """The same architecture with random weights."""
    return with_random_weights(embedded[0])


@pytest.fixture(scope="package")
def scenes() -> list[OneObject]:
    """Five objects, each in another part of the picture, 7 to 20 % of its area."""
    return [one_object(painter, *place) for painter, place in zip(PAINTERS, PLACES, strict=True)]


@pytest.fixture(scope="package")
def captions(embedded, scenes) -> list[str]:
    """What the base model says of them."""
    images = [scene.image for scene in scenes]
    return [c.text for c in caption_images(*embedded, images, PROMPT, "greedy", max_new_tokens=LIMIT)]
