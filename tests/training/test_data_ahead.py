"""Images decoded ahead of need, in processes beside the step."""

from __future__ import annotations

import pytest
import torch

PROMPTS = ["caption en", "describe this image in detail", "What is it?"]


@pytest.mark.parametrize("stage", ["sft", "scst"])
def test_workers_change_nothing(run_stage, sft_adapter, tmp_path, stage):
    """Bit for bit, over the end of two epochs: 12 images, 4 at a time, 7 steps.

    Captions and prompts are drawn anew in every epoch. Persistent workers keep the collator that they were
    started with: they must hear of the epoch all the same.
    """
    adapters = []
    for name, loading in {
        "none": {},
        "new": {"dataloader_num_workers": 2},
        "persistent": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    }.items():
        keys = {"adapter": str(sft_adapter)} if stage == "scst" else {}
        output_dir = str(tmp_path / name)
        trainer = run_stage(stage, output_dir=output_dir, max_steps=7, prompts=PROMPTS, **keys, **loading)
        adapters.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])
    for other in adapters[1:]:
        assert all(torch.equal(a, b) for a, b in zip(adapters[0], other, strict=True))
