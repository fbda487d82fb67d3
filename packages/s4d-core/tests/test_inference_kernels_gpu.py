"""Kernels of `compile_inference` on a CUDA device, against double precision and against torch."""

from __future__ import annotations

import copy

import pytest
import torch
from test_inference import Drive, wh
from torch.nn.functional import interpolate, max_pool2d

import s4d_core
from s4d_core.inference.precision import use_tf32
from s4d_core.key_points import MIN_DEPTH, project_points

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("channels", "stride"), [(24, 1), (256, 2), (300, 1)])
def test_moved_columns_equal_those_of_the_host(
    dtype: torch.dtype, channels: int, stride: int
) -> None:
    from s4d_core.inference.deformable import moved_columns

    x = torch.randn(2, channels, 17, 23).to(dtype)
    moves = 2 * torch.randn(2, 27, -(-17 // stride), -(-23 // stride))
    moves[0, 3, 1, 1], moves[0, 4, 1, 1], moves[0, 6] = 1e30, -1e30, 0.0
    want = moved_columns(x, moves, stride)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = moves.cuda().contiguous(memory_format=layout)
        got = moved_columns(x.cuda(), given, stride).cpu()
        # Positions of about 20 round by 2e-6; pixels beside each other differ by up to 8.
        step = 3e-5 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(got, want, rtol=step, atol=step)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sparse4dv3_r50", "sparse4dv3_tiny"])
def test_fused_kernels_have_float32_accuracy(name: str) -> None:
    from s4d_core.inference.fused_mlp import FusedAnchorEncoder, FusedMLP, fuse_small_networks
    from s4d_core.inference.fused_sampling import FusedAggregation, fuse_aggregation

    torch.manual_seed(0)
    built = s4d_core.build_model(name)
    for layer in built.head.layers:
        torch.nn.init.normal_(layer.aggregation.weights.weight, 0, 0.1)
    head, dims = built.head.cuda().eval(), built.config.embed_dims
    exact = copy.deepcopy(head).double()
    assert fuse_aggregation(head) == len(exact.layers)
    assert fuse_small_networks(head) > 0
    assert isinstance(head.anchor_encoder, FusedAnchorEncoder)
    pairs = [(head.anchor_encoder, exact.anchor_encoder, 11)]
    for fused, plain in zip(head.layers, exact.layers, strict=True):
        encoder = fused.aggregation.camera_encoder
        pairs.append((encoder, plain.aggregation.camera_encoder, 12))
        assert isinstance(encoder, FusedMLP) == (dims <= 128)
    for fused, plain, width in pairs:
        for rows in (1, 6, 37, 900):
            x = torch.randn(2, rows, width, device="cuda")
            want = plain(x.double())
            with use_tf32(False):
                ordinary = (copy.deepcopy(plain).float()(x) - want).abs().max()
            error = (fused(x) - want).abs().max()
            assert error < max(1e-5 * want.abs().max(), 4 * ordinary), (width, rows, ordinary)
    _, lidar2img, _, _ = Drive(built.config)(0)
    block, reference = head.layers[1].aggregation, exact.layers[1].aggregation
    assert isinstance(block, FusedAggregation)
    feature, embed, box = (torch.randn(2, 37, n, device="cuda") for n in (dims, dims, 11))
    matrix, size = lidar2img.cuda(), wh().cuda()
    points = reference.key_points(box.double(), feature.double())
    want = project_points(points, matrix.double(), size.double())
    near = want.abs() < 2  # further out rounding counts for more, and for nothing
    got = block.locations(feature, box, matrix, size)
    # Rounding counts by the sum of absolute products, over the depth: much just before a camera,
    # or where a point is a difference of larger values.
    factors = reference.key_points.fix_scale.abs().max() + 1
    turned = box[..., 6:8].abs().sum(-1) + 1
    reach = box[..., :3].abs() + (turned * box[..., 3:6].exp().sum(-1) * factors)[..., None]
    reach = torch.cat([reach, torch.ones_like(reach[..., :1])], dim=-1).double()
    total = (matrix[:, None].abs().double() * reach[..., None, None, :]).sum(-1)[:, :, None]
    whole = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    depth = (matrix[:, None, None, :, 2].double() * whole[..., None, :]).sum(-1)
    bound = total[..., :2] / size[:, None, None] + want.abs() * total[..., 2:3]
    error = (got - want).abs() * depth.clamp_min(MIN_DEPTH)[..., None] / bound
    assert error[near].max() < 1e-6 and near.float().mean() > 0.01
    want = reference._weights((feature + embed).double(), matrix.double())
    torch.testing.assert_close(
        block.sampling_weights(feature + embed, matrix).double(), want, rtol=1e-4, atol=1e-7
    )


@torch.no_grad()
def test_split_convolutions_have_float32_accuracy() -> None:
    """R50's image part against float64, beside plain float32 and plain TF32."""
    from s4d_core.inference.fusion import image_graph, widen_input
    from s4d_core.inference.graph_kernels import split_convolutions
    from s4d_core.inference.split_products import split_convolution

    torch.manual_seed(0)
    config = s4d_core.reduced_config()
    built = s4d_core.build_model(config).eval().cuda()
    images = torch.randn(6, 3, *config.image.size, device="cuda")
    errors = {}
    with use_tf32(False):
        exact = copy.deepcopy(built).double().pyramid(images.double()[None])
        plain = image_graph(built, images)
    split = copy.deepcopy(plain)
    widen_input(split, 4)
    split_convolutions(split)
    calls = [n for n in split.graph.nodes if n.op == "call_function"]
    assert all("conv" not in str(n.target) or n.target is split_convolution for n in calls)
    wide = torch.cat([images, images.new_zeros(6, 1, *images.shape[2:])], dim=1)
    runs = (
        ("fp32", plain, images, False),
        ("x3", split, wide, False),
        ("tf32", plain, images, True),
    )
    for name, graph, given, allowed in runs:
        with use_tf32(allowed):
            levels = graph(given)
        pairs = zip(levels, exact, strict=True)
        errors[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    print(errors)
    assert errors["x3"] < max(2 * errors["fp32"], 5e-6) and errors["x3"] < errors["tf32"] / 20


@torch.no_grad()
@pytest.mark.parametrize(
    ("depth", "channels", "size", "stride", "height", "width"),
    [
        (64, 64, 1, 1, 16, 44),
        (64, 256, 1, 2, 17, 43),
        (256, 48, 3, 1, 9, 11),
        (32, 40, 3, 2, 10, 7),
        (96, 33, 5, 1, 8, 6),
        (4, 64, 7, 2, 64, 96),
        (4, 24, 3, 1, 5, 9),
        (512, 512, 3, 1, 8, 22),
    ],
)
def test_split_convolution_equals_double_precision(
    depth: int, channels: int, size: int, stride: int, height: int, width: int
) -> None:
    from s4d_core.inference.split_products import split_convolution, split_parts

    torch.manual_seed(0)
    x = torch.randn(3, depth, height, width, device="cuda")
    x[:, 0] *= 1e3  # parts of very different size
    x[:, 1] *= 1e-4
    weight = torch.randn(channels, depth, size, size, device="cuda") / (depth * size**2) ** 0.5
    weight[0] *= 1e-6
    bias = torch.randn(channels, device="cuda")
    padding = size // 2
    want = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    residual = torch.randn_like(want).float()
    parts, finish = split_parts(weight, bias)
    scale = torch.nn.functional.conv2d(
        x.double().abs(), weight.double().abs(), None, stride, padding
    )
    scale = (scale + bias.double().abs()[:, None, None] + residual.double().abs()).clamp_min(1e-6)
    for extra, relu in ((None, False), (residual, True)):
        out = split_convolution(x, parts, finish, extra, relu, size, stride, padding)
        exact = want if extra is None else want + extra
        exact = exact.relu() if relu else exact
        assert ((out - exact).abs() / scale).max() < 1e-6  # of the sum of absolute products
    x[0, 0, 0, 0] = float("nan")
    assert split_convolution(x, parts, finish, None, True, size, stride, padding).isnan().any()


@torch.no_grad()
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (37, 64), (900, 900), (900, 600)])
def test_split_attention_equals_double_precision(rows: int, keys: int) -> None:
    from s4d_core.attention import Attention
    from s4d_core.inference.split_layers import SplitAttention

    torch.manual_seed(0)
    attention = Attention(512, 8, 0.1).eval().cuda()
    torch.nn.init.normal_(attention.in_proj_weight, 0, 0.1)
    split, exact = SplitAttention(attention), copy.deepcopy(attention).double()
    query, key, value = (torch.randn(2, n, 512, device="cuda") for n in (rows, keys, keys))
    visible = torch.rand(2, 1, 1, keys, device="cuda") < 0.5
    visible[..., 0] = True
    with use_tf32(False):
        for given in ((query, key, value), (query, query, query)):
            mask = visible if given[1] is key else None
            wide = {id(x): x.double() for x in given}  # one tensor stays one tensor
            want = exact(*(wide[id(x)] for x in given), mask)
            plain = (attention(*given, mask) - want).abs().max()
            error = (split(*given, mask) - want).abs().max()
            assert error <= max(2 * plain, 2e-6 * want.abs().max()), (error, plain)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_map_steps_equal_those_of_torch(dtype: torch.dtype) -> None:
    from s4d_core.inference.fused_maps import add_upsampled, max_pool_3x3

    fine = torch.randn(3, 24, 16, 44, device="cuda", dtype=dtype)
    coarse = torch.randn(3, 24, 8, 22, device="cuda", dtype=dtype)
    for layout in (torch.channels_last, torch.contiguous_format):
        a, b = fine.contiguous(memory_format=layout), coarse.contiguous(memory_format=layout)
        assert torch.equal(add_upsampled(a, b), a + interpolate(b, scale_factor=2.0))
        for part in (a, a[..., 1:, 1:].contiguous(memory_format=layout)):
            assert torch.equal(max_pool_3x3(part), max_pool2d(part, 3, 2, 1))
