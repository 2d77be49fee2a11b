"""Images decoded ahead of need, in processes beside the step."""

from __future__ import annotations

import torch


def test_workers_change_nothing(run_stage, sft_adapter, tmp_path):
    """Bit for bit, over the end of an epoch: 12 images, 4 at a time, 5 steps."""
    adapters = []
    for workers in (0, 2):
        keys = {"adapter": str(sft_adapter), "max_steps": 5, "dataloader_num_workers": workers}
        trainer = run_stage("scst", output_dir=str(tmp_path / str(workers)), **keys)
        adapters.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*adapters, strict=True))
