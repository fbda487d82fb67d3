"""VoVNet and EVA-02: sizes, recomputation, windows, configurations."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import s4d_core
from s4d_core.backbones import (
    BackboneConfig,
    EvaConfig,
    ResNetConfig,
    VoVNetConfig,
    build_backbone,
)
from s4d_core.backbones.eva import rotary_table, rotate
from s4d_core.backbones.timm_models import feature_channels, feature_sizes

VOVNET = VoVNetConfig((4, 4, 8), (4, 6, 8, 8), (8, 12, 16, 16), 2, (1, 2, 1, 2))
EVA = EvaConfig(
    width=32,
    depth=3,
    num_heads=2,
    hidden=40,
    position_grid=(3, 5),
    window_size=2,
    global_blocks=(2,),
    drop_path=0.0,
    pyramid_channels=8,
    checkpointing=False,
)
# Counts of torchvision (without classifier) and of timm; DD3D's VoVNet has channel attention in
# 12 blocks more than timm's (62 174 272), timm's EVA02-L a final norm more (303 451 072).
FULL = {
    "r50": (ResNetConfig(), 23_508_032),
    "r101": (ResNetConfig(layers=(3, 4, 23, 3)), 42_500_160),
    "vov99": (VoVNetConfig(), 69_523_520),
    "eva02l": (EvaConfig(pyramid_channels=None), 303_449_024),
}


@pytest.mark.parametrize("config", [VOVNET, EVA, replace(EVA, pyramid_channels=None)])
@pytest.mark.parametrize("size", [(64, 96), (48, 80)])
def test_sizes(config: BackboneConfig, size: tuple[int, int]) -> None:
    backbone = build_backbone(config)
    backbone.init_weights()
    maps = backbone(torch.randn(2, 3, *size))
    assert tuple(tuple(m.shape[-2:]) for m in maps) == config.level_sizes(size)
    assert tuple(m.shape[1] for m in maps) == config.out_channels


@pytest.mark.parametrize("name", FULL)
def test_full_networks_on_the_meta_device(name: str) -> None:
    config, parameters = FULL[name]
    with torch.device("meta"):
        backbone = build_backbone(config)
        maps = backbone.eval()(torch.empty(1, 3, 640, 1600))
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert tuple(tuple(m.shape[-2:]) for m in maps) == config.level_sizes((640, 1600))
    assert tuple(m.shape[1] for m in maps) == config.out_channels


@pytest.mark.parametrize("config", [VOVNET, EVA])
def test_recomputing_changes_nothing(config: BackboneConfig) -> None:
    torch.manual_seed(0)
    plain = build_backbone(config).train()
    plain.init_weights()
    saving = build_backbone(replace(config, checkpointing=True)).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 48, 80)
    gradients = []
    for model in (plain, saving):
        sum(m.square().mean() for m in model(images)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
    for (name, mine), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(mine, other), name


def test_frozen_stages_of_vovnet() -> None:
    model = build_backbone(replace(VOVNET, frozen_stages=1)).train()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("stem", "stages.0"))}
    assert not model.stem[0].norm.training and model.stages[1][0].concat.norm.training


def _by_definition(x: Tensor, model: torch.nn.Module, window: int) -> Tensor:
    """Window attention of one block, window by window, positions counted from its corner."""
    attention, (height, width) = model.attention, x.shape[1:3]
    out = torch.zeros_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            part = torch.zeros(1, window, window, x.shape[-1], dtype=x.dtype)
            inside = x[:, top : top + window, left : left + window]
            part[:, : inside.shape[1], : inside.shape[2]] = inside
            tokens = part.flatten(1, 2)
            q, k, v = attention.q(tokens), attention.k(tokens), attention.v(tokens)
            heads = []
            head_dim = q.shape[-1] // attention.heads
            for h in range(attention.heads):
                s = slice(h * head_dim, (h + 1) * head_dim)
                turned = []
                for value in (q[..., s], k[..., s]):
                    pairs = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
                    step = 16 / window
                    row = torch.arange(window).repeat_interleave(window) * step
                    column = torch.arange(window).repeat(window) * step
                    count = head_dim // 4
                    frequency = 10000.0 ** (-torch.arange(count) / count)
                    angle = torch.cat((row[:, None] * frequency, column[:, None] * frequency), -1)
                    turned.append(torch.view_as_real(pairs * torch.exp(1j * angle)).flatten(-2))
                share = (turned[0] @ turned[1].transpose(1, 2) / head_dim**0.5).softmax(-1)
                heads.append(share @ v[..., s])
            joined = attention.proj(torch.cat(heads, -1)).reshape(part.shape)
            out[:, top : top + window, left : left + window] = joined[
                :, : inside.shape[1], : inside.shape[2]
            ]
    return out


def test_window_attention_is_attention_in_each_window() -> None:
    torch.manual_seed(0)
    model = build_backbone(EVA)
    model.init_weights()
    block = model.blocks[0]
    x = torch.randn(1, 3, 5, 32)  # windows of 2 x 2 hang over both edges
    torch.nn.init.normal_(block.attention.v.bias)
    got = block._attend(x, (model.window_cosine, model.window_sine))
    torch.testing.assert_close(got, _by_definition(x, block, 2), rtol=1e-5, atol=1e-6)


def test_rotation_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    table = rotary_table((4, 6), 16, 4)
    q, k = torch.randn(16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    turned_q, turned_k = (rotate(v.expand(24, 16), *table).unflatten(0, (4, 6)) for v in (q, k))
    product = torch.einsum("abc,dec->abde", turned_q, turned_k)
    torch.testing.assert_close(product[0, 0, 1, 2], product[2, 3, 3, 5])
    torch.testing.assert_close(product[3, 0, 1, 2], product[2, 1, 0, 3])


def test_position_embedding_is_resampled_for_other_images() -> None:
    torch.manual_seed(0)
    model = build_backbone(replace(EVA, depth=0, global_blocks=(), pyramid_channels=None))
    torch.nn.init.normal_(model.position)
    torch.nn.init.zeros_(model.patch.weight)
    torch.nn.init.zeros_(model.patch.bias)
    (same,) = model(torch.zeros(1, 3, 48, 80))
    torch.testing.assert_close(same, model.position)
    (other,) = model(torch.zeros(1, 3, 96, 160))
    expected = torch.nn.functional.interpolate(model.position, (6, 10), mode="bicubic")
    torch.testing.assert_close(other, expected)


def test_stochastic_depth_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = build_backbone(replace(EVA, drop_path=0.5)).train().blocks[2]
    x = torch.ones(4000, 1, 1, 1)
    kept = block._dropped(x)
    assert set(kept.unique().tolist()) == {0.0, 2.0} and abs(kept.mean() - 1) < 0.1
    assert torch.equal(block.eval()._dropped(x), x)


@pytest.mark.parametrize("config", [VOVNET, EVA, ResNetConfig()])
def test_configurations_survive_json(config: BackboneConfig) -> None:
    whole = s4d_core.get_config("sparse4dv3_tiny").replace(backbone=config, depth=None)
    assert s4d_core.Sparse4DConfig.from_dict(whole.to_dict()) == whole


def test_a_saved_backbone_without_a_kind_is_a_resnet() -> None:
    whole = s4d_core.get_config("sparse4dv3_tiny")
    data = whole.to_dict()
    del data["backbone"]["kind"]
    assert s4d_core.Sparse4DConfig.from_dict(data) == whole
    data["backbone"]["kind"] = "vovnett"
    with pytest.raises(s4d_core.ConfigError, match="did you mean 'vovnet'"):
        s4d_core.Sparse4DConfig.from_dict(data)


def test_images_must_fit_the_patches() -> None:
    with pytest.raises(s4d_core.ConfigError, match=r"multiples of backbone\.patch_size 16"):
        EVA.level_sizes((50, 80))


class _Features(torch.nn.Module):
    """What timm's `features_only` models offer, in small.

    Model "small" takes any image; "fixed" only that which it was made for, and gives channels last.
    """

    def __init__(self, name: str, **asked: Any) -> None:
        super().__init__()
        if name not in ("small", "fixed"):
            raise RuntimeError(f"Unknown model ({name})")
        if len(asked["out_indices"]) > 2:
            raise AssertionError
        if name == "small" and "img_size" in asked:
            raise TypeError("unexpected keyword argument 'img_size'")
        self.asked = asked
        self.size = asked.get("img_size", (224, 224)) if name == "fixed" else None
        if self.size is not None:
            self.output_fmt = "Format.NHWC"
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, 3, 4, 1) for i, o in ((3, 4), (4, 6))
        )
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.feature_info = types.SimpleNamespace(channels=lambda: [4, 6])

    def forward(self, x: Tensor) -> list[Tensor]:
        assert self.size in (None, x.shape[-2:]), f"height {x.shape[-2]} doesn't match"
        first = self.convs[0](x) + self.table.sum()
        maps = [first, self.convs[1](first)]
        return maps if self.size is None else [m.permute(0, 2, 3, 1) for m in maps]


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    stand_in = types.ModuleType("timm")
    stand_in.__version__ = "0"  # type: ignore[attr-defined]
    stand_in.create_model = _Features  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    yield
    feature_channels.cache_clear()
    feature_sizes.cache_clear()


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm_by_name() -> None:
    assert s4d_core.timm_config("timm/small", (64, 96)) == s4d_core.TimmConfig("small", (-2, -1))
    fixed = s4d_core.timm_config("fixed", (64, 96))
    assert fixed == s4d_core.TimmConfig("fixed", (-2, -1), image_size=(64, 96))
    maps = build_backbone(fixed)(torch.zeros(2, 3, 64, 96))
    assert [m.shape for m in maps] == [(2, 4, 16, 24), (2, 6, 4, 6)]
    assert fixed.level_sizes((64, 96)) == ((16, 24), (4, 6))
    with pytest.raises(s4d_core.ConfigError, match=r"images of 32 x 32.*height 32 doesn't match"):
        fixed.level_sizes((32, 32))
    with pytest.raises(s4d_core.ConfigError, match=r"cannot build 'smal'.*Unknown model"):
        s4d_core.timm_config("timm/smal", (64, 96))


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm(tmp_path: Path) -> None:
    config = s4d_core.TimmConfig("small", out_indices=(1, 2))
    assert config.out_channels == (4, 6)
    assert config.level_sizes((64, 96)) == ((16, 24), (4, 6))
    whole = s4d_core.get_config("sparse4dv3_tiny").replace(
        backbone=config, neck=s4d_core.FPNConfig(num_levels=2), depth=None
    )
    model = s4d_core.build_model(whole).eval()
    assert model.backbone.network.asked["out_indices"] == (1, 2)
    s4d_core.save_checkpoint(model, tmp_path)
    images = torch.randn(1, 6, 3, 128, 352)
    again = s4d_core.load_checkpoint(tmp_path)  # built without values: the table is made anew
    assert torch.equal(model.pyramid(images)[1], again.pyramid(images)[1])


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(s4d_core.ConfigError, match=r"needs timm: install s4d-core\[timm\]"):
        build_backbone(s4d_core.TimmConfig("resnet18"))
