"""Fixtures of the evaluation tests: a dataset of noise images."""

from __future__ import annotations

import pytest
from datasets import Dataset
from datasets import Image as ImageFeature

from tests.support.golden import REFERENCES
from tests.support.tiny import noise_images


@pytest.fixture(scope="session")
def dataset():
    """Five noise images with the golden references, one of them hostile to HTML."""
    references = [*REFERENCES[:4], ["<script>alert('reference')</script> a road ."]]
    ids = [f"img_{i}" for i in range(4)] + ["<b>4</b>"]
    rows = {"image": noise_images(5), "references": references, "image_id": ids}
    return Dataset.from_dict(rows).cast_column("image", ImageFeature())
