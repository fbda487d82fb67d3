"""Backbone: checkpointing, frozen parts, sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import s4d_core
from s4d_core.backbones import ResNet

BASIC = s4d_core.ResNetConfig("basic", (2, 1, 1, 2), (8, 8, 16, 16), 8)
BOTTLENECK = s4d_core.ResNetConfig("bottleneck", (1, 2, 1, 1), (4, 8, 8, 16), 8)


@pytest.mark.parametrize("config", [BASIC, BOTTLENECK])
@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_sizes(config: s4d_core.ResNetConfig, size: tuple[int, int]) -> None:
    maps = ResNet(config)(torch.randn(2, 3, *size))
    assert tuple(tuple(m.shape[-2:]) for m in maps) == config.level_sizes(size)
    assert tuple(m.shape[1] for m in maps) == config.out_channels


@pytest.mark.parametrize(
    ("config", "compiled"), [(BASIC, False), (BOTTLENECK, False), (BASIC, True)]
)
def test_checkpointing_changes_nothing(config: s4d_core.ResNetConfig, compiled: bool) -> None:
    torch.manual_seed(0)
    plain = ResNet(config).train()
    saving = ResNet(replace(config, checkpointing=True)).train()
    saving.load_state_dict(plain.state_dict())
    if compiled:
        saving.compile(backend="aot_eager")
    images = torch.randn(2, 3, 64, 64)
    results = []
    for model in (plain, saving):
        sum(m.square().mean() for m in model(images)).backward()
        results.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], msg=name)
    for (name, mine), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        # Statistics counted once, not once more when the block is recomputed.
        assert torch.equal(mine, other), name
    for module in saving.modules():
        if isinstance(module, _BatchNorm):
            assert module.momentum == 0.1 and module.num_batches_tracked == 1


def test_frozen_stages_and_fixed_statistics() -> None:
    model = ResNet(replace(BASIC, frozen_stages=1)).train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        n for n, _ in model.named_parameters() if n.startswith(("conv1", "bn1", "layer1"))
    }
    assert not model.bn1.training and model.layer2[0].bn1.training
    before = {n: b.clone() for n, b in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64))
    changed = {n.split(".")[0] for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert changed == {"layer2", "layer3", "layer4"}
    model = ResNet(replace(BASIC, norm_eval=True)).train()
    assert not any(m.training for m in model.modules() if isinstance(m, _BatchNorm))
    assert all(p.requires_grad for p in model.parameters())
