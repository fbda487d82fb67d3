"""Single parts against independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import s4d_core
from s4d_core.aggregation_op import FeatureMaps, layout_tables
from s4d_core.anchor_encoder import AnchorEncoder
from s4d_core.anchors import prepare_anchors
from s4d_core.attention import Attention
from s4d_core.box import decode_boxes, project_boxes
from s4d_core.decode import rank
from s4d_core.decoder_layer import DecoderLayer
from s4d_core.denoising import TemporalDenoising, insert_temporal
from s4d_core.depth import DepthBranch
from s4d_core.instance_attention import InstanceAttention
from s4d_core.key_points import project_points
from s4d_core.refinement import Refinement


def rotation(yaw: float) -> np.ndarray:
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@given(
    yaw=st.floats(-3, 3),
    turn=st.floats(-3, 3),
    dt=st.floats(-1, 3),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_projected_boxes_stay_where_they_are_in_the_world(
    yaw: float, turn: float, dt: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    centre, size, velocity = random.normal(0, 20, 3), random.normal(0, 1, 3), random.normal(0, 5, 3)
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation(turn), random.normal(0, 10, 3)
    box = np.concatenate([centre, size, [math.sin(yaw), math.cos(yaw)], velocity])
    moved = project_boxes(
        torch.from_numpy(box)[None, None],
        torch.from_numpy(transform)[None],
        torch.tensor([dt], dtype=torch.float64),
        legacy_yaw_order=False,
    )[0, 0].numpy()
    expected_centre = transform[:3, :3] @ (centre + velocity * dt) + transform[:3, 3]
    np.testing.assert_allclose(moved[:3], expected_centre, atol=1e-9)
    np.testing.assert_allclose(moved[3:6], size)
    np.testing.assert_allclose(moved[6:8], [math.sin(yaw + turn), math.cos(yaw + turn)], atol=1e-9)
    np.testing.assert_allclose(moved[8:], transform[:3, :3] @ velocity, atol=1e-9)
    legacy = project_boxes(
        torch.from_numpy(box)[None, None],
        torch.from_numpy(transform)[None],
        torch.tensor([dt], dtype=torch.float64),
        legacy_yaw_order=True,
    )[0, 0].numpy()
    np.testing.assert_array_equal(legacy[[7, 6]], moved[[6, 7]])


def test_boxes_on_a_slope() -> None:
    """Pitch and roll move heights, and turn a climb into a drive."""
    random = np.random.default_rng(0)
    transform = np.eye(4)
    transform[:3, :3], _ = np.linalg.qr(random.normal(size=(3, 3)))
    transform[:3, 3] = random.normal(0, 10, 3)
    box = random.normal(0, 5, 11)
    moved = project_boxes(
        torch.from_numpy(box)[None, None],
        torch.from_numpy(transform)[None],
        torch.tensor([0.5], dtype=torch.float64),
        legacy_yaw_order=False,
    )[0, 0].numpy()
    there = transform[:3, :3] @ (box[:3] + 0.5 * box[8:]) + transform[:3, 3]
    np.testing.assert_allclose(moved[:3], there, atol=1e-9)
    np.testing.assert_allclose(moved[8:], transform[:3, :3] @ box[8:], atol=1e-9)


def test_decoded_boxes() -> None:
    box = torch.tensor([[1, 2, 3, 0, math.log(2), math.log(4), 1, 0, 5, 6, 7.0]])
    expected = torch.tensor([[1, 2, 3, 1, 2, 4, math.pi / 2, 5, 6, 7]])
    torch.testing.assert_close(decode_boxes(box), expected)


def test_projection_to_images() -> None:
    torch.manual_seed(0)
    points, matrix = torch.randn(2, 5, 3, 3).double() * 20, torch.randn(2, 4, 4, 4).double()
    size = torch.rand(2, 4, 2).double() * 100 + 1
    got = project_points(points, matrix, size)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    pixels = torch.einsum("bnij,bapj->bapni", matrix, homogeneous)
    expected = pixels[..., :2] / pixels[..., 2:3].clamp(min=1e-5) / size[:, None, None]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_multi_head_attention(masked: bool) -> None:
    torch.manual_seed(0)
    mine = Attention(32, 4, 0.1).eval().double()
    other = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval().double()
    other.load_state_dict(mine.state_dict())
    query, key, value = (torch.randn(2, n, 32).double() for n in (5, 7, 7))
    visible = torch.rand(5, 7) > 0.5 if masked else None
    if visible is not None:
        visible[:, 0] = True
    expected = other(query, key, value, attn_mask=None if visible is None else ~visible)[0]
    torch.testing.assert_close(mine(query, key, value, visible), expected)
    expected = other(query, query, query)[0]
    torch.testing.assert_close(mine(query, query, query), expected)


@pytest.mark.parametrize("mode", ["cat", "add"])
def test_anchor_encoder(mode: str) -> None:
    dims = (8, 4, 2, 2) if mode == "cat" else (16, 16, 16, 16)
    config = s4d_core.AnchorEncoderConfig(mode, dims, blocks=2, output_layer=mode == "add")
    encoder = AnchorEncoder(config, 16)
    box = torch.randn(2, 3, 11)
    parts = [
        encoder.position(box[..., :3]),
        encoder.size(box[..., 3:6]),
        encoder.yaw(box[..., 6:8]),
        encoder.velocity(box[..., 8:]),
    ]
    joined = torch.cat(parts, -1) if mode == "cat" else encoder.output(torch.stack(parts).sum(0))
    torch.testing.assert_close(encoder(box), joined)


def test_refined_yaw_is_a_correction_or_absolute() -> None:
    torch.manual_seed(0)
    adds, sets = Refinement(16, 3, refine_yaw=True), Refinement(16, 3, refine_yaw=False)
    sets.load_state_dict(adds.state_dict())
    feature, embed, box = torch.randn(2, 4, 16), torch.randn(2, 4, 16), torch.randn(2, 4, 11)
    interval = torch.tensor([0.5, 2.0])
    first, second = (r(feature, box, embed, interval) for r in (adds, sets))
    torch.testing.assert_close(first[..., 6:8], second[..., 6:8] + box[..., 6:8])
    torch.testing.assert_close(first[..., [0, 5, 8, 10]], second[..., [0, 5, 8, 10]])
    step = adds(feature, torch.zeros_like(box), embed, torch.ones(2))
    expected = step[..., 8:] / interval[:, None, None] + box[..., 8:]
    torch.testing.assert_close(first[..., 8:], expected)


def test_class_prior() -> None:
    bias = Refinement(16, 3, True).cls_output.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((3,), 0.01))


def maps_of(sizes: tuple, cameras: int, channels: int) -> FeatureMaps:
    shapes, starts = layout_tables(sizes, cameras)
    rows = cameras * sum(h * w for h, w in sizes)
    return FeatureMaps(
        torch.randn(2, rows, channels).double(), torch.tensor(shapes), torch.tensor(starts), sizes
    )


def test_sampling_weights_equal_the_plain_formula() -> None:
    """The split linear layer and the reordered softmax give what the reference computes."""
    torch.manual_seed(0)
    config = s4d_core.get_config("sparse4dv3_tiny")
    block = DecoderLayer(config, True, True).aggregation.double()
    torch.nn.init.normal_(block.weights.weight)
    feature, lidar2img = torch.randn(2, 5, 64).double(), torch.randn(2, 6, 4, 4).double()
    camera = block.camera_encoder(lidar2img[:, :, :3].flatten(2))
    logits = block.weights(feature[:, :, None] + camera[:, None])  # (B, A, N, L * P * G)
    plain = logits.reshape(2, 5, -1, 8).softmax(dim=-2)
    plain = plain.reshape(2, 5, 6, 4, 13, 8).permute(0, 1, 4, 2, 3, 5)
    torch.testing.assert_close(block.eval()._weights(feature, lidar2img), plain)


def test_sampling_dropout_drops_points_of_cameras() -> None:
    torch.manual_seed(0)
    config = s4d_core.get_config("sparse4dv3_tiny")
    block = DecoderLayer(config, True, True).aggregation
    feature, lidar2img = torch.randn(2, 50, 64), torch.randn(2, 6, 4, 4)
    full, dropped = (
        block.eval()._weights(feature, lidar2img),
        block.train()._weights(feature, lidar2img),
    )
    gone = dropped == 0  # (B, A, P, N, L, G)
    assert torch.equal(gone.all(-1).all(-1), gone.any(-1).any(-1))
    assert abs(gone.float().mean().item() - 0.15) < 0.01
    torch.testing.assert_close(dropped[~gone], full[~gone] / 0.85)


def test_depth_scales_with_focal() -> None:
    branch = DepthBranch(4, 2, 100.0)
    maps = [torch.randn(6, 4, 8, 8), torch.randn(6, 4, 4, 4), torch.randn(6, 4, 2, 2)]
    plain = branch(maps)
    assert [tuple(d.shape) for d in plain] == [(6, 1, 8, 8), (6, 1, 4, 4)]
    focal = torch.tensor([[50.0, 100.0, 200.0], [100.0, 100.0, 400.0]])
    for scaled, depth in zip(branch(maps, focal), plain, strict=True):
        torch.testing.assert_close(scaled, depth * focal.reshape(6, 1, 1, 1) / 100)


def scores(cls: list[float], centerness: list[float]) -> tuple[Tensor, Tensor]:
    logits = torch.tensor(cls).logit()
    quality = torch.tensor(centerness).logit()
    return torch.stack([logits, logits - 9], -1)[None], torch.stack([quality, quality], -1)[None]


def output_of(cls: Tensor, quality: Tensor) -> s4d_core.FrameOutput:
    count = cls.shape[1]
    box = torch.zeros(1, count, 11)
    box[..., 0] = torch.arange(count)
    ids = torch.arange(count)[None] + 100
    return s4d_core.FrameOutput([None, cls], [box, box], [None, quality], ids, None, None, None)


def test_decoding_order_and_both_orders_of_class_scores() -> None:
    config = s4d_core.get_config("sparse4dv3_tiny").replace(num_output=3)
    cls, quality = scores([0.9, 0.1, 0.8, 0.7], [0.1, 0.9, 0.9, 0.5])
    found = s4d_core.decode(output_of(cls, quality), config)[0]
    torch.testing.assert_close(found.scores, torch.tensor([0.72, 0.35, 0.09]))
    assert found.track_ids.tolist() == [102, 103, 100] and found.boxes[:, 0].tolist() == [2, 3, 0]
    torch.testing.assert_close(found.class_scores, torch.tensor([0.9, 0.8, 0.7]))
    aligned = s4d_core.decode(output_of(cls, quality), config.replace(score_order="aligned"))[0]
    torch.testing.assert_close(aligned.class_scores, torch.tensor([0.8, 0.7, 0.9]))
    boxes, fused, labels, ids = s4d_core.decode_tensors(
        cls, quality, torch.zeros(1, 4, 11), torch.arange(4)[None], config
    )
    assert boxes.shape == (1, 3, 10) and labels.tolist() == [[0, 0, 0]]
    assert ids.tolist() == [[2, 3, 0]] and torch.equal(fused[0], found.scores)
    assert rank(cls, quality, config).rows.tolist() == [[2, 3, 0]]


def test_labels_go_with_their_boxes() -> None:
    config = s4d_core.get_config("sparse4dv3_tiny").replace(num_output=3)
    logits = torch.tensor([[2.0, -3, -3], [-3, 1.9, -3], [-3, -3, 1.8]])[None]
    _, quality = scores([0.5] * 3, [0.1, 0.5, 0.9])
    found = s4d_core.decode(output_of(logits, quality), config)[0]
    assert found.track_ids.tolist() == [102, 101, 100] and found.labels.tolist() == [2, 1, 0]


def test_decoding_threshold_is_on_the_class_score() -> None:
    config = s4d_core.get_config("sparse4dv3_tiny").replace(num_output=4, score_threshold=0.75)
    cls, quality = scores([0.9, 0.1, 0.8, 0.7], [0.1, 0.9, 0.9, 0.5])
    found = s4d_core.decode(output_of(cls, quality), config)[0]
    assert found.track_ids.tolist() == [102, 100]
    torch.testing.assert_close(found.class_scores, torch.tensor([0.9, 0.8]))


@pytest.mark.parametrize(("carried", "count"), ((3, 5), (5, 3)))
def test_attention_to_the_past_sees_the_carried_rows_or_the_current_ones(
    carried: int, count: int
) -> None:
    attend = InstanceAttention(4, decoupled=True)
    valid = torch.tensor([True, False])
    past = attend.past(torch.zeros(2, carried, 4), valid, None, count)
    seen = past.visible[:, 0, 0]
    assert seen.shape == (2, 5)
    assert seen.sum(dim=-1).tolist() == [carried, count]
    assert seen[0, :carried].all() and seen[1, :count].all()


@pytest.mark.parametrize("rows", (1, 2, 3))
def test_groups_kept_from_the_frame_before_take_the_first_places(rows: int) -> None:
    """Where the past counts; moved into this frame; cut or filled up to a group's size."""
    torch.manual_seed(0)
    kept = TemporalDenoising(torch.randn(2, 1, rows, 4), torch.randn(2, 1, rows, 11))
    queries = s4d_core.DenoisingQueries(torch.randn(2, 6, 11), 3, temporal=kept)
    feature, anchor = torch.randn(2, 6, 4), torch.randn(2, 6, 11)
    transform = torch.randn(2, 4, 4)
    mask, step = torch.tensor([True, False]), torch.tensor([0.5, 0.5])
    features, anchors = insert_temporal(queries, feature, anchor, mask, transform, step, True)
    used = min(rows, 2)
    there = project_boxes(kept.anchor[:, 0], transform, step, True)
    torch.testing.assert_close(anchors[0, :used], there[0, :used])
    torch.testing.assert_close(features[0, :used], kept.feature[0, 0, :used])
    assert (anchors[0, used:2] == 0).all() and (features[0, used:2] == 0).all()
    for before, after in ((feature, features), (anchor, anchors)):
        torch.testing.assert_close(after[0, 2:], before[0, 2:])
        torch.testing.assert_close(after[1], before[1])


def test_default_anchors_are_the_same_every_time_and_within_range() -> None:
    anchors = s4d_core.default_anchors(900)
    np.testing.assert_array_equal(anchors, s4d_core.default_anchors(900))
    assert anchors.shape == (900, 11) and anchors.dtype == np.float32
    assert np.hypot(anchors[:, 0], anchors[:, 1]).max() < 54
    assert len(np.unique(anchors[:, :2].round(3), axis=0)) == 900


@pytest.mark.parametrize(
    "anchors", [np.zeros((19, 11)), np.zeros((20, 10)), np.zeros(11), np.full((20, 11), np.nan)]
)
def test_bad_anchors_are_named(anchors: np.ndarray) -> None:
    with pytest.raises(s4d_core.errors.InvalidInputError, match="anchors"):
        prepare_anchors(anchors, 20)
