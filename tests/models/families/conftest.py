"""A tiny model of every family and attention kernel, and prompts of it with images of different shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from scst.models.policy import Policy, policy_for
from scst.models.prompts import PromptEncoder
from scst.types import PromptBatch
from tests.support import families

KERNELS = [
    (name, kernel)
    for name in families.FAMILIES
    for kernel in ("sdpa", "eager")
    if (name, kernel) != ("paligemma2", "sdpa")  # refused: scst.models.pretrained
]


@dataclass(frozen=True)
class World:
    """A family with everything that its tests need."""

    name: str
    model: Any
    processor: Any
    encoder: PromptEncoder
    policy: Policy
    padded: bool

    @property
    def images(self) -> list[Any]:
        return families.pictures(self.name)

    @property
    def instructions(self) -> list[str]:
        return families.INSTRUCTIONS if self.padded else families.INSTRUCTIONS[:1] * 2

    @property
    def prompts(self) -> PromptBatch:
        return self.encoder.prompt_batch(self.images, self.instructions)


def make_world(name: str, kernel: str, *, padded: bool = True, **text: Any) -> World:
    processor = families.build_processor(name)
    model = families.build_model(name, processor, kernel=kernel, **text)
    return World(name, model, processor, PromptEncoder.of(processor), policy_for(model, processor), padded)


@pytest.fixture(params=KERNELS, ids=["-".join(pair) for pair in KERNELS], scope="module")
def built(request):
    """Name, kernel and the model, which no test may change."""
    return make_world(*request.param)


@pytest.fixture(params=[True, False], ids=["padded", "one prompt"])
def world(request, built):
    """Prompts of different lengths, or one prompt for all (image tokens may still differ in number)."""
    return World(built.name, built.model, built.processor, built.encoder, built.policy, request.param)
