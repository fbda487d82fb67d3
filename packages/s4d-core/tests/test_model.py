"""The whole model at tiny size: state, first frames, gaps, denoising, precision, export."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from conftest import native_op_missing
from torch import Tensor

import s4d_core
from s4d_core.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("any_op")
SIZE = (64, 96)


def config(**changes: object) -> s4d_core.Sparse4DConfig:
    base = s4d_core.get_config("sparse4dv3_tiny")
    return base.replace(
        image=replace(base.image, size=SIZE),
        backbone=s4d_core.ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 16, 16), 8),
        decoder=replace(base.decoder, num_layers=3),
        num_anchors=30,
        num_temporal=20,
        num_output=25,
        **changes,
    )


def model(**changes: object) -> s4d_core.Sparse4D:
    torch.manual_seed(0)
    built = s4d_core.build_model(config(**changes)).double().eval()
    for layer in built.head.decoders:  # as after training: not equal everywhere
        torch.nn.init.normal_(layer.aggregation.weights.weight, std=0.3)
        torch.nn.init.normal_(layer.refinement.cls_output.weight, std=0.3)
    torch.nn.init.normal_(built.head.bank.feature)
    return built


def inputs(batch: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    height, width = SIZE
    lidar2img = torch.randn(batch, 6, 4, 4, generator=random).double() * 10
    lidar2img[:, :, 2, :3] *= 0.1
    pose = torch.eye(4).double().repeat(batch, 1, 1)
    pose[:, :3, 3] = torch.randn(batch, 3, generator=random).double() + 1000
    return {
        "images": torch.randn(batch, 6, 3, height, width, generator=random).double(),
        "lidar2img": lidar2img,
        "image_wh": torch.tensor([width, height]).double().expand(batch, 6, 2),
        "timestamp": torch.full((batch,), 1.5e9 + 0.5 * seed).double(),
        "lidar2global": pose,
    }


def rows(frame: dict[str, Tensor], index: list[int]) -> dict[str, Tensor]:
    return {name: value[index] for name, value in frame.items()}


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other() -> None:
    """One sample on its first frame, one later, one after a gap: as each on its own."""
    net = model()
    first, second = inputs(3, 1), inputs(3, 2)
    second["timestamp"][2] += 10
    state = net(**first).state.reset(torch.tensor([True, False, False]))
    together = net(**second, state=state)
    assert together.trace.temporal_mask.tolist() == [False, True, False]
    for b in range(3):
        own = None if b == 0 else net(**rows(first, [b])).state
        alone = net(**rows(second, [b]), state=own)
        for mine, other in zip(together.box, alone.box, strict=True):
            torch.testing.assert_close(mine[b], other[0])
        for field in fields(s4d_core.BankState):
            if field.name in ("feature", "anchor", "confidence"):
                mine, other = (getattr(o.state.bank, field.name) for o in (together, alone))
                torch.testing.assert_close(mine[b], other[0])


@torch.no_grad()
def test_an_empty_state_is_not_looked_at() -> None:
    net, frame = model(), inputs(2, 1)
    plain = net(**frame)
    state = net(**inputs(2, 0)).state.reset(torch.tensor([True, True]))
    again = net(**frame, state=state)
    for mine, other in zip(plain.box, again.box, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    torch.testing.assert_close(plain.state.bank.confidence, again.state.bank.confidence)
    # Ids go on counting: an id is never given twice.
    assert again.track_ids.min() == plain.track_ids.max() + 1


@torch.no_grad()
def test_another_batch_size_is_a_first_frame() -> None:
    net = model()
    state = net(**inputs(2, 0)).state
    output = net(**inputs(1, 1), state=state)
    assert output.trace.temporal_mask.tolist() == [False]
    assert output.track_ids.min() == 0


@torch.no_grad()
def test_ids_follow_instances() -> None:
    net = model()
    first = net(**inputs(2, 0))
    second = net(**inputs(2, 1), state=first.state)
    carried = config().num_temporal
    assert torch.equal(second.track_ids[:, :carried], first.state.bank.track_id)
    for output in (first, second):
        assert output.track_ids.unique().numel() == output.track_ids.numel()
    assert second.track_ids[:, carried:].min() == first.track_ids.max() + 1
    late = inputs(2, 2)
    late["timestamp"] += 100
    third = net(**late, state=second.state)
    assert third.track_ids.min() == second.track_ids.max() + 1


@torch.no_grad()
def test_track_threshold_leaves_weak_instances_without_id() -> None:
    net = model(track_threshold=0.5)
    output = net(**inputs(2, 0))
    strong = output.cls[-1].sigmoid().amax(-1) >= 0.5
    assert torch.equal(output.track_ids >= 0, strong)
    ids = output.track_ids[strong]
    assert torch.equal(ids, torch.arange(len(ids)))


@torch.no_grad()
def test_a_zero_step_and_a_backward_step() -> None:
    net = model()
    first, again, back = inputs(1, 0), inputs(1, 0), inputs(1, 0)
    state = net(**first).state
    output = net(**again, state=state)
    assert output.trace.temporal_mask.item() and output.trace.time_interval.item() == 0.5
    back["timestamp"] -= 0.25
    output = net(**back, state=state)
    assert output.trace.temporal_mask.item() and output.trace.time_interval.item() == -0.25


@torch.no_grad()
@pytest.mark.parametrize("seconds", (10.0, -10.0))
def test_after_a_gap_the_stale_instances_are_attended_to_and_not_merged(seconds: float) -> None:
    net = model()
    state, late = net(**inputs(1, 0)).state, inputs(1, 1)
    late["timestamp"] += seconds
    output = net(**late, state=state)
    assert not output.trace.temporal_mask.item() and output.trace.time_interval.item() == 0.5
    assert output.track_ids.min() >= state.bank.id_counter  # all are new
    reset = net(**late, state=state.reset(torch.tensor([True])))
    torch.testing.assert_close(output.box[0], reset.box[0])  # no past in the first decoder
    assert not torch.allclose(output.box[1], reset.box[1], atol=1e-3)  # keys of the second
    assert (output.trace.confidence[:, :20] >= 0.6 * state.bank.confidence).all()


def noisy(batch: int, groups: int, size: int, **more: object) -> s4d_core.DenoisingQueries:
    random = torch.Generator().manual_seed(7)
    anchor = torch.randn(batch, groups * size, 11, generator=random).double()
    return s4d_core.DenoisingQueries(anchor, groups, **more)


@torch.no_grad()
@pytest.mark.parametrize("later", [False, True])
def test_noisy_queries_do_not_touch_free_instances(later: bool) -> None:
    net = model()
    state = net(**inputs(2, 0)).state if later else None
    frame = inputs(2, 1)
    temporal = s4d_core.TemporalDenoising(
        torch.randn(2, 2, 4, 64).double(), torch.randn(2, 2, 4, 11).double()
    )
    plain = net(**frame, state=state)
    for queries in (noisy(2, 3, 6), noisy(2, 3, 6, temporal=temporal), noisy(2, 5, 2)):
        output = net(**frame, state=state, denoising=queries)
        for mine, other in zip(plain.box, output.box, strict=True):
            torch.testing.assert_close(mine, other)
        for field in fields(s4d_core.BankState):
            mine, other = (getattr(o.state.bank, field.name) for o in (plain, output))
            torch.testing.assert_close(mine, other)
        assert output.denoising.box[0].shape == queries.anchor.shape
        expected = later and queries.temporal is not None
        assert output.denoising.temporal_mask.tolist() == [expected] * 2


@torch.no_grad()
def test_denoising_groups_do_not_see_each_other() -> None:
    net, frame = model(), inputs(1, 1)
    queries = noisy(1, 3, 4)
    full = net(**frame, denoising=queries).denoising
    changed = queries.anchor.clone()
    changed[:, 4:8] += 1
    other = net(**frame, denoising=s4d_core.DenoisingQueries(changed, 3)).denoising
    for mine, theirs in zip(full.box, other.box, strict=True):
        torch.testing.assert_close(mine[:, :4], theirs[:, :4])
        torch.testing.assert_close(mine[:, 8:], theirs[:, 8:])
        assert not torch.allclose(mine[:, 4:8], theirs[:, 4:8])


def test_bad_denoising_queries_are_named() -> None:
    with pytest.raises(InvalidInputError, match="3 groups"):
        s4d_core.DenoisingQueries(torch.zeros(1, 10, 11), 3)
    with pytest.raises(InvalidInputError, match="attention_mask"):
        s4d_core.DenoisingQueries(torch.zeros(1, 9, 11), 3, torch.zeros(8, 9, dtype=torch.bool))


def test_training_reaches_every_trained_weight() -> None:
    net = model().train()
    state = None
    for seed in range(2):
        output = net(
            **inputs(2, seed),
            state=state,
            denoising=noisy(2, 2, 3),
            focal=torch.full((2, 6), 500.0).double(),
        )
        state = output.state
    assert all(c is not None for c in output.cls) and not state.bank.feature.requires_grad
    parts = [*output.cls, *output.box, *output.quality, *output.depth, *output.denoising.box]
    sum(p.square().mean() for p in parts).backward()
    without = {n for n, p in net.named_parameters() if p.requires_grad and p.grad is None}
    # A first anchor's row that the bank replaced still gets a gradient from the first decoder.
    assert without == set()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@torch.no_grad()
def test_scores_only_where_they_are_used() -> None:
    net, frame = model(), inputs(1, 0)
    output = net(**frame)
    assert [c is None for c in output.cls] == [False, True, False]
    assert [q is None for q in output.quality] == [False, True, False]
    every = net(**frame, every_layer=True)
    assert all(c is not None for c in every.cls)
    torch.testing.assert_close(every.cls[-1], output.cls[-1])


@torch.no_grad()
def test_bfloat16_autocast_keeps_boxes_in_float32() -> None:
    net = model().float()
    frame = {
        k: v.float() if v.dim() > 1 and k != "lidar2global" else v for k, v in inputs(1, 0).items()
    }
    plain = net(**frame)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(**frame)
    for box in (*half.box, half.state.bank.anchor, half.state.bank.feature):
        assert box.dtype == torch.float32
    assert all(c.dtype == torch.float32 for c in half.cls if c is not None)
    assert (plain.box[0] - half.box[0]).abs().median() < 0.05


@torch.no_grad()
def test_three_cameras_and_another_size() -> None:
    net = model(camera_names=("a", "b", "c"))
    frame = inputs(1, 0)
    frame = {
        k: v[:, :3] if k in ("images", "lidar2img", "image_wh") else v for k, v in frame.items()
    }
    assert net(**frame).box[-1].shape == (1, 30, 11)
    frame["images"] = torch.randn(1, 3, 3, 96, 128).double()
    assert net(**frame).box[-1].shape == (1, 30, 11)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda x: x[0], "expected images (B, N, 3, H, W)"),
        ("lidar2img", lambda x: x[:, :5], "expected lidar2img (1, 6, 4, 4)"),
        ("image_wh", lambda x: x[:, 0], "expected image_wh (1, 6, 2)"),
        ("timestamp", lambda x: x.float(), "expected timestamp in float64"),
        ("lidar2global", lambda x: x[:, :3], "expected lidar2global (1, 4, 4)"),
    ],
)
def test_bad_inputs_are_named(name: str, change: object, message: str) -> None:
    frame = inputs(1, 0)
    frame[name] = change(frame[name])
    with pytest.raises(InvalidInputError) as caught:
        model()(**frame)
    assert message in str(caught.value)


def test_normalise() -> None:
    net = model().float()
    image = torch.randint(0, 256, (1, 6, 4, 5, 3), dtype=torch.uint8)
    got = net.normalise(image)
    mean, std = (torch.tensor(v) for v in (net.config.image.mean, net.config.image.std))
    torch.testing.assert_close(got, ((image.float() - mean) / std).permute(0, 1, 4, 2, 3))


class Exported(torch.nn.Module):
    """`frame` with tensors only, as an exporter wraps it."""

    def __init__(self, net: s4d_core.Sparse4D) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        image_wh: Tensor,
        pose: Tensor,
        interval: Tensor,
        bank: s4d_core.BankState,
    ) -> tuple:
        frame = self.net.frame(images, lidar2img, image_wh, pose, interval, bank)
        decoded = s4d_core.decode_tensors(
            frame.cls[-1], frame.quality[-1], frame.box[-1], frame.track_ids, self.net.config
        )
        return (*decoded, frame.bank)


def frame_args(net: s4d_core.Sparse4D, seed: int, bank: s4d_core.BankState) -> tuple:
    frame = inputs(1, seed)
    return (
        frame["images"].float(),
        frame["lidar2img"].float(),
        frame["image_wh"].float(),
        torch.eye(4)[None],
        torch.tensor([0.5]),
        bank,
    )


@torch.no_grad()
def test_export_is_one_graph_for_first_and_later_frames(both_ops: str) -> None:
    net = Exported(model().float().eval())
    empty = s4d_core.BankState.empty(net.net.config, 1)
    program = torch.export.export(net, frame_args(net.net, 0, empty))
    calls = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    for word in ("aten.item", "local_scalar", "nonzero", "autocast"):
        assert not any(word in c for c in calls), calls
    assert any("s4d" in c for c in calls) == (both_ops == "native")
    graph, mine, theirs = program.module(), empty, empty
    for seed in range(3):
        *boxes, mine = net(*frame_args(net.net, seed, mine))
        *other, theirs = graph(*frame_args(net.net, seed, theirs))
        for a, b in zip(boxes, other, strict=True):
            torch.testing.assert_close(a, b)
        assert torch.equal(mine.track_id, theirs.track_id)
    assert bool(theirs.valid.all())


@torch.no_grad()
def test_dynamo_traces_a_frame_without_breaks() -> None:
    net = model().float().eval()
    args = frame_args(net, 0, s4d_core.BankState.empty(net.config, 1))
    compiled = torch.compile(net.frame, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args).box[-1], net.frame(*args).box[-1])


@pytest.mark.gpu
@torch.no_grad()
def test_a_frame_on_the_gpu_waits_for_nothing() -> None:
    if native_op_missing():
        pytest.skip("the native operator is not built")
    net = model().float().cuda()
    frames = [
        {
            k: v.cuda() if k in ("timestamp", "lidar2global") else v.float().cuda()
            for k, v in inputs(1, s).items()
        }
        for s in (0, 1)
    ]
    state = net(**frames[0]).state
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = net(**frames[1], state=state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert output.box[-1].isfinite().all()
