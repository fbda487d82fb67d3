"""Gradients of two ranks, averaged after a pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from s4d_train.trainer.gradients import GradientAverage, same_start

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


class Net(nn.Module):
    """Channels last, a parameter that is used twice, one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.unused = nn.Linear(3, 1)
        self.out = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.out(self.conv(images).flatten(1)[:, :4]))


def one_rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        torch.manual_seed(rank)
        net = Net()
        same_start(net)
        parameters = list(net.parameters())
        images = torch.randn(2, 2, 4, 4)
        own = torch.autograd.grad(net(images).square().sum(), parameters, allow_unused=True)
        found = [own]
        for size in (1, 100, 10**9):  # as many buckets as parameters, a few, one
            average = GradientAverage(parameters, size)
            net.zero_grad()
            net(images).square().sum().backward()
            average()
            assert all(p.grad.stride() == p.stride() for p in parameters)
            found.append([p.grad.clone() for p in parameters])
            for p in parameters:
                p.grad = None
        torch.save((net.state_dict(), found), f"{folder}/{rank}")
    finally:
        dist.destroy_process_group()


def test_ranks_have_the_same_start_and_mean_gradients(tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    (weights, first), (others, second) = (torch.load(tmp_path / str(r)) for r in range(2))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    zero = torch.zeros(())
    wanted = [
        ((zero if a is None else a) + (zero if b is None else b)) / 2
        for a, b in zip(first[0], second[0], strict=True)
    ]
    assert sum(bool(w.any()) for w in wanted) == 4
    for one, other in zip(first[1:], second[1:], strict=True):
        for mean, a, b in zip(wanted, one, other, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, mean.expand_as(a))
