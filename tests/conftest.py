"""Fixtures of all rooms: tiny models made from scratch, so that every test runs without any download.

The process that only hands tests out to others loads this file too: what takes seconds to import is imported
where it is used.
"""

from __future__ import annotations

import atexit
import gc
import os
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"
if "SCST_TESTS_CACHE" not in os.environ:  # the first process; others of the session inherit it
    os.environ["SCST_TESTS_CACHE"] = tempfile.mkdtemp(prefix="scst-tests-cache-")
    atexit.register(shutil.rmtree, os.environ["SCST_TESTS_CACHE"], ignore_errors=True)
os.environ["HF_DATASETS_CACHE"] = os.environ["SCST_TESTS_CACHE"]  # nothing of the user's is read or changed
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as scst.config.build does where there is no GPU

import pytest

from tests.support.browser import chromium
from tests.support.paths import SHARED

SET_BY_LIBRARIES = (
    *("PYTEST_CURRENT_TEST", "KMP_", "PYTORCH_NVML_BASED_CUDA_CHECK"),
    "TORCHINDUCTOR_CACHE_DIR",
)
"""How variables begin that no test changes: set by pytest, or by imports of sklearn, accelerate and torch."""

pytest_plugins = ["tests.support.stages"]

SLOW_FIXTURES = {"run_stage", "sft_adapter", "browser", "golden_results"}
"""They train, open a browser or start Java: what asks for one of them is slow."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow by its fixtures; files with much of it first, so that no worker is left with one."""
    slow: Counter[Path] = Counter()
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        slow[item.path] += item.get_closest_marker("slow") is not None
    if not config.getoption("random_order_enabled", False):
        items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Leave the libraries and the tests out of garbage collections: every training begins with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _global_state_is_left_alone() -> Iterator[None]:
    """No test may leave behind what would change the ones after it, in whichever order they run."""
    before = _global_state()
    yield
    after = _global_state()
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed, f"left behind: {sorted(changed)}"


def _global_state() -> dict[str, Any]:
    import torch

    return {
        **{f"${name}": v for name, v in os.environ.items() if not name.startswith(SET_BY_LIBRARIES)},
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "folder": os.getcwd(),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "file size limit": resource.getrlimit(resource.RLIMIT_FSIZE),
    }


@pytest.fixture(scope="session")
def tiny_processor():
    """A PaliGemma processor of 32-pixel images (16 image tokens) with a small trained vocabulary."""
    from tests.support.tiny import build_processor

    return build_processor()


@pytest.fixture
def tiny_model(tiny_processor):
    """A random PaliGemma 1 (Gemma decoder, sdpa attention)."""
    from tests.support.tiny import build_model

    return build_model(tiny_processor)


@pytest.fixture
def tiny_model_v2(tiny_processor):
    """A random PaliGemma 2 (Gemma 2 decoder with logit softcapping, eager attention)."""
    from tests.support.tiny import build_model

    return build_model(tiny_processor, version=2)


@pytest.fixture(scope="session")
def images():
    """Four different noise images."""
    from tests.support.tiny import noise_images

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
