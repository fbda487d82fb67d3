"""`compile_inference` against the model itself, on the CPU: what it computes, not how fast."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import s4d_core
from s4d_core.backbones.config import BackboneConfig
from s4d_core.backbones.deform_conv import DeformConv2d
from s4d_core.errors import InvalidInputError
from s4d_core.inference import CompiledModel, compile_inference
from s4d_core.inference.fusion import image_graph, widen_input
from s4d_core.inference.precision import cast_at_boundaries, is_half, to_half
from s4d_ops import image

pytestmark = pytest.mark.usefixtures("any_op")
SIZE = (64, 96)
RAW = (90, 150)
# The kinds of model; `model` is v3 with ResNet-18, the rest differ from one of these in sizes.
FAMILY = (
    "sparse4dv1_r101_h1_640x1600",
    "sparse4dv1_r101_h4_640x1600",
    "sparse4dv2_r50_256x704",
    "sparse4dv3_r101_512x1408",
    "sparse4dv3_vov99_640x1600",
    "sparse4dv3_eva02l_640x1600_offline",
)


def model(layers: tuple[int, ...] = (1, 1, 1, 1), block: str = "basic") -> s4d_core.Sparse4D:
    base = s4d_core.get_config("sparse4dv3_tiny")
    config = base.replace(
        image=replace(base.image, size=SIZE),
        backbone=s4d_core.ResNetConfig(block, layers, (8, 8, 16, 16), 8),
        decoder=replace(base.decoder, num_layers=3),
        num_anchors=30,
        num_temporal=20,
        num_output=25,
    )
    torch.manual_seed(0)
    built = s4d_core.build_model(config).eval()
    settle_norms(built)
    for layer in built.head.layers:  # scores far enough apart for one order in any rounding
        nn.init.normal_(layer.refinement.cls_output.weight, 0, 0.5)
    return built


def settle_norms(built: nn.Module) -> None:
    """Statistics as after training, not zeros and ones."""
    for part in built.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)


@cache
def compiled(batch: int, precision: str, raw: tuple[int, int] | None = None) -> CompiledModel:
    """Made once for all tests; a test that uses it starts with `reset`."""
    return compile_inference(model(), batch_size=batch, precision=precision, raw_size=raw)


class Drive:
    """Frames of two samples; the second has a gap at frame 3."""

    def __init__(self, config: s4d_core.Sparse4DConfig) -> None:
        self.config = config
        self.random = torch.Generator().manual_seed(3)

    def __call__(self, k: int) -> tuple[Tensor, ...]:
        cameras = self.config.num_cameras
        images = torch.randn(2, cameras, 3, *SIZE, generator=self.random)
        matrix = torch.tensor(
            [[20.0, 9.0, 0, 48.0], [0, 5.0, -20.0, 32.0], [0, 1.0, 0.1, 0.5], [0, 0, 0, 1]]
        )
        stamp = torch.tensor([0.5 * k, 0.5 * k + 9.0 * (k > 2)], dtype=torch.float64)
        pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
        pose[:, 0, 3] = 1e5 + 3.0 * k
        return images, matrix.expand(2, cameras, 4, 4), stamp, pose


def wh(count: int = 2) -> Tensor:
    return torch.tensor([SIZE[1], SIZE[0]]).float().expand(count, 6, 2)


def assert_same(
    found: list, wanted: list, tolerance: float = 1e-3, moved: list | None = None
) -> None:
    """Equal but for rounding; `moved`: and for four times what a rounding of the images moves."""
    for got, want, other in zip(found, wanted, moved or wanted, strict=True):
        for one in (got, other):
            assert torch.equal(one.labels, want.labels)
            assert torch.equal(one.track_ids, want.track_ids)
        for field, limit in (("scores", 1e-4), ("class_scores", 1e-4), ("boxes", tolerance)):
            a, b, c = (getattr(x, field) for x in (got, want, other))
            drift = float((c - b).abs().max()) if len(b) else 0.0
            relative = limit if field == "boxes" else 0.0
            torch.testing.assert_close(a, b, rtol=relative, atol=limit + 4 * drift)


def nudged(frames: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The frames with images that differ by about one rounding."""
    random = torch.Generator().manual_seed(0)
    return [(x * (1 + 6e-8 * torch.randn(x.shape, generator=random)), *y) for x, *y in frames]


@torch.no_grad()
def test_frames_gap_and_reset_equal_the_model() -> None:
    built, fast = model(), compiled(2, "fp32")
    fast.reset()
    drive, state = Drive(built.config), None
    for k in range(6):
        images, lidar2img, stamp, pose = drive(k)
        if k == 4:  # the first sample starts anew
            state = state.reset(torch.tensor([True, False]))
            fast.reset(torch.tensor([True, False]))
        out = built(images, lidar2img, wh(), stamp, pose, state)
        state = out.state
        assert_same(fast(images, lidar2img, stamp, pose), s4d_core.decode(out, built.config))


def small_backbone(name: str) -> BackboneConfig:
    """The kind of backbone that a listed model has, with few channels and blocks."""
    backbone = s4d_core.get_config(name).backbone
    if isinstance(backbone, s4d_core.VoVNetConfig):
        return replace(
            backbone,
            stem_channels=(8, 8, 16),
            widths=(8,) * 4,
            out_channels=(16, 24, 32, 32),
            layers=2,
            blocks=(1, 1, 2, 1),
        )
    if isinstance(backbone, s4d_core.EvaConfig):
        return replace(
            backbone,
            width=64,
            depth=3,
            num_heads=2,
            hidden=96,
            window_size=2,
            global_blocks=(2,),
            position_grid=(SIZE[0] // 16, SIZE[1] // 16),
            pyramid_channels=32,
        )
    return replace(backbone, layers=(1, 1, 2, 1), widths=(8, 8, 16, 16), stem_channels=8)


def family_member(name: str) -> s4d_core.Sparse4D:
    """A listed model, small, with weights that tell scores apart."""
    base = s4d_core.get_config(name)
    config = s4d_core.reduced_config(
        base,
        image_size=SIZE,
        num_anchors=30,
        num_temporal=min(20, base.num_temporal),
        num_output=20,
    ).replace(backbone=small_backbone(name))
    torch.manual_seed(0)
    built = s4d_core.build_model(config).eval()
    settle_norms(built)
    for part in built.modules():
        if isinstance(part, DeformConv2d):  # offsets of about a pixel, not none
            nn.init.normal_(part.conv_offset.weight, 0, 0.1)
    for layer in built.head.layers:
        nn.init.normal_(layer.refinement.cls_output.weight, 0, 0.5)
    return built


def answers(built: s4d_core.Sparse4D, frames: list[tuple[Tensor, ...]]) -> list[list]:
    """Of the plain model, which is given frames to come where it samples them."""
    queue, state, found = built.config.queue, None, []
    ahead = queue.length if queue is not None and queue.frames == "future" else 0
    seen = [built.observe(*frame) for frame in frames] if ahead else []
    for k, (images, lidar2img, stamp, pose) in enumerate(frames[: len(frames) - ahead]):
        coming = seen[k + 1 : k + 1 + ahead]
        out = built(images, lidar2img, wh().to(images), stamp, pose, state, future=coming)
        state = out.state
        found.append(s4d_core.decode(out, built.config))
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_every_model_equals_the_model(name: str) -> None:
    """Queues of past and of coming feature maps, models without carried instances or quality."""
    built = family_member(name)
    fast = compile_inference(built, batch_size=2, precision="fp32")
    drive = Drive(built.config)
    frames = [drive(k) for k in range(3 + fast.delay)]
    wanted = answers(built, frames)
    found = [fast(*frame) for frame in frames]
    assert all(len(one.scores) == 0 for early in found[: fast.delay] for one in early)
    for got, want in zip(found[fast.delay :], wanted, strict=True):
        assert_same(got, want)
    half = compile_inference(built, batch_size=2, precision="fp16")
    for frame in frames[: 1 + fast.delay]:
        half(*frame)
    assert half._frame._maps.feature.dtype == torch.float16
    if half._frame.bank.queue is not None:
        assert half._frame.bank.queue.maps.dtype == torch.float16
        assert half.state.bank.queue.maps.dtype == torch.float32
    scores = half._frame.detections().scores
    first = torch.stack([one.scores for one in wanted[0]])
    torch.testing.assert_close(scores, first, rtol=0, atol=2e-2)


@torch.no_grad()
def test_state_can_be_taken_and_given() -> None:
    built, fast = model(), compiled(2, "fp32")
    fast.reset()
    drive = Drive(built.config)
    first, second = drive(0), drive(1)
    fast(*first)
    kept = fast.state
    wanted = fast(*second)
    fast.reset()
    assert not fast.state.bank.valid.any()
    fast.state = kept
    assert_same(fast(*second), wanted)
    out = built(second[0], second[1], wh(), *second[2:], kept)
    assert_same(s4d_core.decode(out, built.config), wanted)


@torch.no_grad()
def test_raw_images_are_resized_and_normalised() -> None:
    built, fast = model(), compiled(1, "fp32", RAW)
    fast.reset()
    random = np.random.default_rng(0)
    raw = [random.integers(0, 256, (*RAW, 3), dtype=np.uint8) for _ in range(6)]
    plan = image.plan_resize_crop(RAW, SIZE)
    small = np.stack([image.resize_crop(x, plan, built.config.image.resize_filter) for x in raw])
    images = built.normalise(torch.from_numpy(small)[None])
    _, lidar2img, stamp, pose = (x[:1] for x in Drive(built.config)(0))
    wanted = s4d_core.decode(built(images, lidar2img, wh(1), stamp, pose), built.config)
    assert_same(fast(raw, lidar2img, stamp, pose), wanted)
    fast.reset()
    assert_same(fast(np.stack(raw)[None], lidar2img.numpy(), stamp.numpy(), pose.numpy()), wanted)
    assert fast.resize is not None and fast.resize.matrix.shape == (3, 3)


@torch.no_grad()
def test_half_precision_is_near() -> None:
    """Scores by rank; rows whose scores nearly tie may change places."""
    built = model()
    fast = compiled(2, "fp16")
    frame = fast._frame
    assert frame.model.head.anchor_encoder.position[0].weight.dtype == torch.float32
    assert frame.model.head.layers[1].ffn.expand.weight.dtype == torch.float16
    images, lidar2img, stamp, pose = Drive(built.config)(0)
    fast(images, lidar2img, stamp, pose)
    assert frame._maps.feature.dtype == torch.float16
    wanted = s4d_core.decode(built(images, lidar2img, wh(), stamp, pose), built.config)
    scores = frame.detections().scores
    torch.testing.assert_close(scores, torch.stack([x.scores for x in wanted]), rtol=0, atol=5e-3)


@pytest.mark.parametrize(("block", "fuse_relu"), [("basic", False), ("bottleneck", True)])
def test_image_graph_equals_the_layers(block: str, fuse_relu: bool) -> None:
    built = model((2, 1, 2, 1), block).double()
    images = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    graph = image_graph(built, images, fuse_relu)
    with torch.no_grad():
        wanted = built.pyramid(images[None])
        for got, want in zip(graph(images), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        names = [str(node.target) for node in graph.graph.nodes]
        assert not any("batch_norm" in name for name in names)
        assert any("relu" in name for name in names) != fuse_relu
        assert widen_input(graph, 8)
        wide = torch.cat([images, torch.full((3, 5, *SIZE), 7.0, dtype=torch.float64)], dim=1)
        for got, want in zip(graph(wide), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_only_convolutions_can_be_given_more_channels() -> None:
    built = model()
    stem = nn.Conv2d(3, 8, 7, 2, 2, bias=False)
    built.backbone.conv1 = nn.Sequential(nn.ZeroPad2d(1), stem)  # as some of timm's models begin
    graph = image_graph(built, torch.zeros(1, 3, *SIZE))
    assert not widen_input(graph, 8)


def test_half_modules_follow_the_plan() -> None:
    built = model()
    to_half(built)
    cast_at_boundaries(built)
    for name, parameter in built.named_parameters():
        wanted = torch.float16 if is_half(name.rpartition(".")[0]) else torch.float32
        assert parameter.dtype == wanted, name
    assert built.head.anchor_encoder(torch.zeros(1, 2, 11)).dtype == torch.float32
    query = torch.zeros(1, 4, 128)
    assert built.head.layers[1].self_attention(query, query, query).dtype == torch.float16


def test_what_cannot_be_is_said() -> None:
    built = model()
    with pytest.raises(InvalidInputError, match="precision"):
        compile_inference(built, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="CUDA"):
        compile_inference(built, graph=True, device="cpu")
    with pytest.raises(InvalidInputError, match="fp32x3"):
        compile_inference(built, precision="fp32x3", device="cpu")
    fast = compiled(1, "fp32", RAW)
    _, lidar2img, stamp, pose = (x[:1] for x in Drive(built.config)(0))
    images = [np.zeros((*RAW, 3), np.uint8)] * 6
    with pytest.raises(InvalidInputError, match="6 camera images"):
        fast(images[:5], lidar2img, stamp, pose)
    with pytest.raises(InvalidInputError, match="uint8"):
        fast([x.astype(np.float32) for x in images], lidar2img, stamp, pose)
    with pytest.raises(InvalidInputError, match="lidar2img"):
        fast(images, lidar2img[:, :5], stamp, pose)
    with pytest.raises(InvalidInputError, match="state of this model"):
        fast.state = compiled(2, "fp32").state
