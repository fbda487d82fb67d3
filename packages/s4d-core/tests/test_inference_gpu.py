"""`compile_inference` and the decoder's aggregation block on a CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_inference import (
    FAMILY,
    RAW,
    Drive,
    answers,
    assert_same,
    family_member,
    model,
    nudged,
    wh,
)

import s4d_core
from s4d_core.aggregation_op import FeatureMaps
from s4d_core.inference import compile_inference
from s4d_core.inference.precision import use_tf32
from s4d_core.temporal_sampling import Scene, View

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@torch.no_grad()
@pytest.mark.parametrize(
    ("precision", "graph"), [("fp32", False), ("fp32", True), ("fp32x3", True)]
)
def test_frames_gap_and_reset_equal_the_model(precision: str, graph: bool) -> None:
    built = model().cuda()
    fast = compile_inference(built, batch_size=2, precision=precision, graph=graph)
    drive, state = Drive(built.config), None
    for k in range(6):
        images, lidar2img, stamp, pose = drive(k)
        if k == 4:
            where = torch.tensor([True, False])
            state = state.reset(where)
            fast.reset(where)
        on_gpu = [x.cuda() for x in (images, lidar2img, wh(), stamp, pose)]
        with use_tf32(False):
            out = built(*on_gpu, state)
        state = out.state
        wanted = [on_host(x) for x in s4d_core.decode(out, built.config)]
        assert_same(fast(images, lidar2img, stamp, pose), wanted)


def on_host(found: s4d_core.Detections) -> s4d_core.Detections:
    return s4d_core.Detections(*(getattr(found, n).cpu() for n in found.__dataclass_fields__))


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_lower_precision_is_near(precision: str) -> None:
    built = model().cuda()
    fast = compile_inference(built, batch_size=2, precision=precision)
    exact = compile_inference(built, batch_size=2, precision="fp32")
    drive = Drive(built.config)
    for k in range(3):
        fast.state = exact.state  # errors of one frame, not of a drive
        frame = drive(k)
        exact(*frame)
        fast(*frame)
        got, want = fast._frame.detections().scores, exact._frame.detections().scores
        torch.testing.assert_close(got, want, rtol=0, atol=2e-2)
        assert (got - want).abs().mean() < 3e-3


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILY)
def test_every_model_equals_the_model(name: str) -> None:
    """Random weights amplify rounding from frame to frame, some a thousand times in six."""
    built = family_member(name).cuda()
    drive = Drive(built.config)
    frames = [drive(k) for k in range(6)]
    with use_tf32(False):
        wanted, moved = (
            [[on_host(one) for one in found] for found in answers(built, on_gpu(shown))]
            for shown in (frames, nudged(frames))
        )
    for precision in ("fp32", "fp32x3"):
        fast = compile_inference(built, batch_size=2, precision=precision)
        found = [fast(*frame) for frame in frames]
        for got, want, other in zip(found[fast.delay :], wanted, moved, strict=True):
            assert_same(got, want, moved=other)
    half = compile_inference(built, batch_size=2, precision="fp16")
    for frame in frames[: 1 + half.delay]:
        half(*frame)
    scores = half._frame.detections().scores
    first = torch.stack([one.scores for one in wanted[0]])
    torch.testing.assert_close(scores, first, rtol=0, atol=2e-2)


def on_gpu(frames: list[tuple[torch.Tensor, ...]]) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(x.cuda() for x in frame) for frame in frames]


@torch.no_grad()
def test_raw_images_from_host_pinned_and_device_memory() -> None:
    built = model().cuda()
    fast = compile_inference(built, precision="fp32", raw_size=RAW)
    random = np.random.default_rng(0)
    raw = [random.integers(0, 256, (*RAW, 3), dtype=np.uint8) for _ in range(6)]
    _, lidar2img, stamp, pose = (x[:1] for x in Drive(built.config)(0))
    slow = compile_inference(built.cpu(), precision="fp32", raw_size=RAW, device="cpu")
    wanted = slow(raw, lidar2img, stamp, pose)
    tensors = [torch.from_numpy(x) for x in raw]
    for images in (raw, [x.pin_memory() for x in tensors], [x.cuda() for x in tensors]):
        fast.reset()
        assert_same(fast(images, lidar2img, stamp, pose), wanted)


@torch.no_grad()
def test_two_models_on_one_device_do_not_disturb_each_other() -> None:
    built = model().cuda()
    first, second = (compile_inference(built, batch_size=2, precision="fp32") for _ in range(2))
    drive = Drive(built.config)
    frames = [drive(k) for k in range(3)]
    alone = [first(*frame) for frame in frames]
    first.reset()
    for frame, wanted in zip(frames, alone, strict=True):
        found = first(*frame)
        second(*frames[0])
        for got, want in zip(found, wanted, strict=True):  # the same kernels: the same bits
            assert torch.equal(got.boxes, want.boxes)
            assert torch.equal(got.track_ids, want.track_ids)


@torch.no_grad()
def test_inductor_equals_the_model() -> None:
    built = model().cuda()
    fast = compile_inference(built, batch_size=2, precision="fp32", inductor=True)
    plain = compile_inference(built, batch_size=2, precision="fp32")
    drive = Drive(built.config)
    for k in range(3):
        frame = drive(k)
        assert_same(fast(*frame), plain(*frame))


class Block(torch.nn.Module):
    """The aggregation block of one decoder with tensors for arguments."""

    def __init__(self, built: s4d_core.Sparse4D, maps: FeatureMaps) -> None:
        super().__init__()
        self.block, self.maps = built.head.layers[1].aggregation, maps

    def forward(self, values: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        feature, box, embed, lidar2img, image_wh = rest
        maps = self.maps._replace(feature=values)
        view = View(maps, lidar2img)
        return self.block(feature, box, embed, Scene(view, image_wh))


def block_and_inputs() -> tuple[Block, list[torch.Tensor]]:
    built = model().cuda()
    images, lidar2img, _, _ = Drive(built.config)(0)
    maps = built.features(images.cuda())
    random = torch.Generator().manual_seed(0)
    size = (2, 30, built.config.embed_dims)
    feature, embed = (torch.randn(size, generator=random).cuda() for _ in range(2))
    box = torch.randn(2, 30, 11, generator=random).cuda()
    box[..., :3] *= 10
    return Block(built, maps), [maps.feature, feature, box, embed, lidar2img.cuda(), wh().cuda()]


@torch.no_grad()
def test_aggregation_block_is_captured_in_a_cuda_graph() -> None:
    block, inputs = block_and_inputs()
    wanted = block(*inputs)
    fixed = [value.clone() for value in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            block(*fixed)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = block(*fixed)
    for scale in (0.5, 1.0):
        fixed[1].copy_(inputs[1] * scale)
        fixed[2].copy_(inputs[2] * scale)
        graph.replay()
    torch.cuda.synchronize()
    assert wanted.abs().max() > 0
    assert torch.equal(found, wanted)


def test_aggregation_block_compiles_without_breaks_and_with_gradients() -> None:
    block, inputs = block_and_inputs()
    compiled = torch.compile(block, fullgraph=True, dynamic=False)
    results = []
    for call in (block, compiled):
        leaves = [x.detach().clone().requires_grad_(k < 4) for k, x in enumerate(inputs)]
        out = call(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves[:4])])
    for got, want in zip(*reversed(results), strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
