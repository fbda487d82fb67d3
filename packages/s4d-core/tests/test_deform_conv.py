"""Deformable convolution against recorded float64 results, and its place in a ResNet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import golden_arrays
from torch import Tensor

import s4d_core
from s4d_core.backbones import ResNet
from s4d_core.backbones.column_gradients import indexed_gradients, native_gradients
from s4d_core.backbones.deform_conv import DeformConv2d, deform_conv2d

CAFFE = s4d_core.ResNetConfig(
    "bottleneck",
    (1, 1, 2, 1),
    (4, 8, 8, 16),
    8,
    style="caffe",
    deformable=(False, False, True, True),
)


@pytest.mark.parametrize("case", ["A", "B", "C"])
def test_recorded_values_and_gradients(case: str) -> None:
    arrays = golden_arrays("v1_v2", "golden_dcn.npz")

    def get(name: str) -> Tensor:
        return torch.from_numpy(arrays[f"{case}/{name}"]).double()

    inputs = [get(name).requires_grad_() for name in ("x", "offset", "mask", "weight")]
    out = deform_conv2d(*inputs, stride=int(get("stride")))
    torch.testing.assert_close(out, get("out"), rtol=0, atol=1e-10)
    out.backward(get("grad_out"))
    for name, value in zip(("x", "offset", "mask", "weight"), inputs, strict=True):
        torch.testing.assert_close(value.grad, get(f"grad_{name}"), rtol=0, atol=1e-10, msg=name)


def test_without_offsets_it_is_a_convolution() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(5, 7, stride=2).double()
    x = torch.randn(2, 5, 9, 12, dtype=torch.float64)
    expected = 0.5 * torch.nn.functional.conv2d(x, layer.weight, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected)


def test_whole_pixels_have_the_slope_towards_larger_coordinates() -> None:
    # Zero offsets, as at the start of training: every position is a whole pixel.
    x = torch.arange(12.0, dtype=torch.float64).square().reshape(1, 1, 1, 12)
    offset = torch.zeros(1, 2, 1, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, 1, 12, dtype=torch.float64)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    deform_conv2d(x, offset, mask, one, padding=0).sum().backward()
    assert offset.grad is not None
    slope = torch.diff(x.flatten(), append=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(offset.grad[0, 1, 0], slope)


def test_positions_stay_exact_under_autocast() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(4, 4)
    torch.nn.init.normal_(layer.conv_offset.weight, std=1.0)
    x = torch.randn(1, 4, 20, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    # Products are rounded to bfloat16, positions are not.
    torch.testing.assert_close(out.float(), layer(x), rtol=0.02, atol=0.05)


def test_stride_sits_where_the_style_says() -> None:
    model = ResNet(CAFFE)
    first = model.layer3[0]
    assert first.conv1.stride == (2, 2) and first.conv2.stride == 1
    assert isinstance(first.conv2, DeformConv2d)
    assert isinstance(model.layer2[0].conv2, torch.nn.Conv2d)
    maps = model(torch.randn(1, 3, 50, 70))
    assert tuple(tuple(m.shape[-2:]) for m in maps) == CAFFE.level_sizes((50, 70))


def test_recomputing_deformable_blocks_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = ResNet(replace(CAFFE, frozen_stages=1, norm_eval=True)).train()
    saving = ResNet(replace(plain.config, checkpointing=True)).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    results = []
    for model in (plain, saving):
        sum(m.square().mean() for m in model(images)).backward()
        results.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert not any(name.startswith(("conv1", "layer1")) for name in results[0])
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], msg=name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_both_gradients_are_the_same(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    x = torch.randn(2, 16, 14, 30, device=device).to(dtype)
    y, x_pos, mask = (torch.rand(2, 50, device=device, dtype=wide) for _ in range(3))
    y, x_pos = y * 20 - 3, x_pos * 36 - 3  # beyond all borders too
    y[:, ::5], x_pos[:, ::5] = y[:, ::5].round(), x_pos[:, ::5].round()
    grad = torch.randn(2, 16, 50, device=device).to(dtype)
    expected = indexed_gradients(x, y, x_pos, mask, grad)
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3}[dtype]
    for got, want in zip(native_gradients(x, y, x_pos, mask, grad), expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=error, atol=error)
