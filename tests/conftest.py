"""Tiny PaliGemma models and a processor made from scratch: every test runs without any download."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

from tests.support.browser import chromium
from tests.support.paths import SHARED
from tests.support.tiny import build_model, build_processor, noise_images

torch.set_num_threads(1)

pytest_plugins = ["tests.support.stages"]


@pytest.fixture(scope="session")
def tiny_processor():
    """A PaliGemma processor of 32-pixel images (16 image tokens) with a small trained vocabulary."""
    return build_processor()


@pytest.fixture
def tiny_model(tiny_processor):
    """A random PaliGemma 1 (Gemma decoder, sdpa attention)."""
    return build_model(tiny_processor)


@pytest.fixture
def tiny_model_v2(tiny_processor):
    """A random PaliGemma 2 (Gemma 2 decoder with logit softcapping, eager attention)."""
    return build_model(tiny_processor, version=2)


@pytest.fixture(scope="session")
def images():
    """Four different noise images."""
    return noise_images(4)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; tests that ask for it are skipped where there is none.

    For one module: while it is open its event loop runs in this thread, where asyncio.run would refuse.
    """
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that ask for it are skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("real data is not on this machine")
    return folder


@pytest.fixture(scope="session")
def rsicd_model() -> Path:
    """The small real PaliGemma; tests that ask for it are skipped where it is absent."""
    folder = SHARED / "models" / "rsicd-paligemma-tiny"
    if not folder.is_dir():
        pytest.skip("the small real model is not on this machine")
    return folder
