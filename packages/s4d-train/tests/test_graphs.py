"""Recording of the network: what goes in and comes out is the same, without a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from micro import micro_config
from torch import nn

from s4d_train.data.index import DriveIndex
from s4d_train.trainer import graphs
from s4d_train.trainer.feed import Feed
from s4d_train.trainer.graphs import GraphedModule, flatten, rebuild
from s4d_train.trainer.ranks import Ranks
from s4d_train.trainer.trainer import Trainer

ALONE = Ranks(0, 1, torch.device("cpu"))


class Overwriting:
    """Stands in for a recording: every call fills the same output tensors, as a replay does."""

    def __init__(self, module: nn.Module, samples: tuple[torch.Tensor, ...]) -> None:
        self.module, self.inputs = module, samples
        self.outputs: list[torch.Tensor] | None = None

    def __call__(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for own, value in zip(self.inputs, values, strict=True):
            own.copy_(value)
        fresh = self.module(*self.inputs)
        if self.outputs is None:
            self.outputs = [leaf.detach().clone() for leaf in fresh]
        for own, value in zip(self.outputs, fresh, strict=True):
            own.copy_(value.detach())
        # Values that are overwritten later, with the gradient of the fresh ones.
        return tuple(
            own + (new - new.detach()) if new.requires_grad else own
            for own, new in zip(self.outputs, fresh, strict=True)
        )


def test_flatten_and_rebuild_are_inverse() -> None:
    state = graphs._Node  # any class is a constant
    tree = ([torch.zeros(2), None], (torch.ones(1), "name"), state)
    leaves: list[torch.Tensor] = []
    skeleton = flatten(tree, leaves)
    assert len(leaves) == 2
    back = rebuild(skeleton, [leaf + 1 for leaf in leaves])
    assert torch.equal(back[0][0], torch.ones(2)) and back[0][1] is None
    assert torch.equal(back[1][0], torch.full((1,), 2.0)) and back[1][1:] == ("name",)
    assert back[2] is state


def test_replayed_steps_train_like_plain_ones(
    synth_index: DriveIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses over nine steps, with temporal denoising and track-aware assignment."""
    monkeypatch.setattr(
        torch.cuda,
        "make_graphed_callables",
        lambda module, samples, allow_unused_input: Overwriting(module, samples),
    )
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    pairs = ("model.dropout=0.0", "loss.denoising.fixed_size=true", "loss.cost.continuity=2.0")
    config = micro_config(tmp_path, Path(synth_index.folder), *pairs)
    losses = []
    for record in (False, True):
        trainer = Trainer(config, ALONE)
        if record:
            trainer.module = GraphedModule(trainer.module)
        batches = Feed(config, ALONE).batches()
        losses.append([trainer.train_step(next(batches), 1e-3)["loss"].item() for _ in range(9)])
        if record:
            assert len(trainer.module._recorded) == 1
    assert losses[1] == losses[0]
