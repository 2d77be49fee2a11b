"""A tiny model of every family and attention kernel, and prompts of it with images of different shapes."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support import families

KERNELS = [
    (name, kernel)
    for name in families.FAMILIES
    for kernel in ("sdpa", "eager")
    if (name, kernel) != ("paligemma2", "sdpa")  # refused: scst.models.pretrained
]


@pytest.fixture(params=KERNELS, ids=["-".join(pair) for pair in KERNELS], scope="module")
def built(request):
    """Name, kernel and the model, which no test may change."""
    return families.make_world(*request.param)


@pytest.fixture(params=[True, False], ids=["padded", "one prompt"])
def world(request, built):
    """Prompts of different lengths, or one prompt for all (image tokens may still differ in number)."""
    return dataclasses.replace(built, padded=request.param)
