"""Deformable convolution against recorded float64 results, and its place in a ResNet."""

from __future__ import annotations

from contextlib import nullcontext
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


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reference", [False, True], ids=["native", "torch"])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (1, 5), (4, 1)], ids=str)
def test_gradients_are_those_of_finite_differences(
    device: str, reference: bool, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    height, width = size
    moves = torch.randn(1, 18, height, width, dtype=torch.float64, device=device) * 2
    whole = moves.floor()  # at whole pixels the slope jumps
    inputs = (
        torch.randn(1, 2, height, width, dtype=torch.float64, device=device),
        whole + (moves - whole).clamp(0.05, 0.95),
        torch.rand(1, 9, height, width, dtype=torch.float64, device=device),
        torch.randn(2, 2, 3, 3, dtype=torch.float64, device=device),
    )
    # Features are added up by atomic operations on the device, in any order.
    tolerance = 1e-12 if device == "cuda" else 0.0
    with s4d_core.use_reference_op() if reference else nullcontext():
        assert torch.autograd.gradcheck(
            deform_conv2d, [value.requires_grad_() for value in inputs], nondet_tol=tolerance
        )


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("size", [(2, 16, 14, 30), (1, 1, 1, 1), (2, 3, 5, 15)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_both_gradients_are_the_same(
    device: str, dtype: torch.dtype, size: tuple[int, int, int, int], channels_last: bool
) -> None:
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    batch, channels, height, width = size
    x = torch.randn(size, device=device).to(dtype)
    y, x_pos, mask = (torch.rand(batch, 50, device=device, dtype=wide) for _ in range(3))
    y, x_pos = y * (height + 6) - 3, x_pos * (width + 6) - 3  # beyond all borders too
    y[:, ::5], x_pos[:, ::5] = y[:, ::5].round(), x_pos[:, ::5].round()
    for position in (y, x_pos):
        position[:, :3] = torch.tensor([torch.nan, torch.inf, -1e30])
    grad = torch.randn(batch, channels, 50, device=device).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
        y, x_pos, mask = (value.t().contiguous().t() for value in (y, x_pos, mask))
    expected = indexed_gradients(x, y, x_pos, mask, grad)
    error = TOLERANCES[dtype]
    for got, want in zip(native_gradients(x, y, x_pos, mask, grad), expected, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=error, atol=error)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_gradients_are_the_same(device: str) -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(4, 4).to(device, torch.float64)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(2, 4, 9, 11, device=device, dtype=torch.float64)
    step = torch.compile(lambda x: layer(layer(x)), backend="aot_eager", fullgraph=True)
    results = []
    for run in (lambda x: layer(layer(x)), step):
        layer.zero_grad()
        run(x).square().mean().backward()
        results.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    assert len(results[0]) == 3
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
