"""Gradients of two ranks, averaged in one message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from s4d_train.trainer.gradients import average_gradients, same_start

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


def one_rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        torch.manual_seed(rank)
        module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(4, 1))
        module[0].to(memory_format=torch.channels_last)
        same_start(module)
        weight = module[0].weight
        weight.grad = torch.full_like(weight, 1.0 + rank)
        weight.grad[0, 0, 0, 1] = 5.0 * rank
        if rank == 0:
            module[2].bias.grad = torch.tensor([4.0])
        average_gradients(list(module.parameters()))
        torch.save((module.state_dict(), [p.grad for p in module.parameters()]), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


def test_ranks_have_the_same_start_and_mean_gradients(tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    (weights, gradients), (others, same) = (torch.load(tmp_path / str(r)) for r in range(2))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert gradients[0][0, 0, 0, 1] == 2.5 and gradients[0][1, 1, 1, 0] == 1.5
    assert gradients[-1].item() == 2.0 and not gradients[1].any()
