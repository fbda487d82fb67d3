"""v1, v2 and the offline model at tiny size: conversion, and the queue of feature maps.

s4d-export's tests export these models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoint import published_weights
from test_config import meta_model
from test_model import SIZE, inputs
from torch import Tensor

import s4d_core
from s4d_core.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("any_op")
PARAMETERS = {
    "sparse4dv1_r101_h1_640x1600": 58_344_034,
    "sparse4dv1_r101_h4_640x1600": 59_132_002,
    "sparse4dv2_r50_256x704": 39_552_987,
    "sparse4dv3_r50": 48_156_232,
}
V1, V2 = "sparse4dv1_r101_h4_640x1600", "sparse4dv2_r50_256x704"
OFFLINE = "sparse4dv3_eva02l_640x1600_offline"


@pytest.mark.parametrize("name", s4d_core.list_models())
def test_every_model_can_be_described_and_built(name: str) -> None:
    config = s4d_core.get_config(name)
    assert config.name == name
    assert s4d_core.Sparse4DConfig.from_dict(config.to_dict()) == config
    parameters = sum(p.numel() for p in meta_model(config).parameters())
    assert parameters == PARAMETERS.get(name, parameters)


def tiny(name: str, **changes: object) -> s4d_core.Sparse4DConfig:
    """The model with a backbone and numbers that take milliseconds."""
    config = s4d_core.get_config(name)
    backbone = s4d_core.ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 16, 16), 8)
    config = replace(config, backbone=backbone)
    small = s4d_core.reduced_config(config, 32, SIZE, 30, 20, 2, 25)
    return small.replace(**changes)


def build(config: s4d_core.Sparse4DConfig) -> s4d_core.Sparse4D:
    torch.manual_seed(0)
    model = s4d_core.build_model(config).double().eval()
    for layer in model.head.decoders:  # as after training: not equal everywhere
        torch.nn.init.normal_(layer.aggregation.weights.weight, std=0.3)
        torch.nn.init.normal_(layer.refinement.cls_output.weight, std=0.3)
    torch.nn.init.normal_(model.head.bank.feature)
    return model


def plain(frame: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arguments of `observe`."""
    return {k: v for k, v in frame.items() if k != "image_wh"}


def rigid(seed: int, batch: int = 2) -> dict[str, Tensor]:
    """`inputs` with cameras that see the boxes and a small motion from frame to frame."""
    frame = inputs(batch, seed)
    height, width = SIZE
    matrix = torch.tensor(
        [[width / 2, 0, -width / 2, 0], [0, -width / 2, height / 2, 0], [0, 0, 1.0, 0]]
    )
    turn = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    project = torch.eye(4).double()
    project[:3] = matrix
    camera = torch.eye(4).double()
    camera[:3, :3] = turn
    frame["lidar2img"] = (project @ camera).expand(batch, 6, 4, 4)
    angle = torch.tensor(0.05 * seed).double()
    pose = torch.eye(4).double()
    pose[0, 0] = pose[1, 1] = angle.cos()
    pose[1, 0], pose[0, 1] = angle.sin(), -angle.sin()
    pose[:3, 3] = torch.tensor([600.0 + 2 * seed, 1500.0, 1.5])
    frame["lidar2global"] = pose.expand(batch, 4, 4)
    frame["timestamp"] = torch.full((batch,), 1.5e9 + 0.5 * seed, dtype=torch.float64)
    return frame


@torch.no_grad()
def test_remembered_frames_are_the_frames_of_a_drive() -> None:
    """A state filled by `remember` is the state after driving, and a reset empties it."""
    model = build(tiny(V1))
    driven = remembered = None
    for seed in range(4):
        driven = model(**rigid(seed), state=driven).state
        remembered = model.remember(model.observe(**plain(rigid(seed))), remembered)
    for mine, other in zip(
        vars(driven.bank.queue).values(), vars(remembered.bank.queue).values(), strict=True
    ):
        torch.testing.assert_close(mine, other)
    assert driven.bank.queue.filled.all() and driven.bank.queue.maps.shape[1] == 3
    torch.testing.assert_close(driven.bank.queue.age[0], torch.tensor([0.0, 0.5, 1.0]).double())
    first = model(**rigid(4))
    again = model(**rigid(4), state=driven.reset(torch.tensor([True, False])))
    torch.testing.assert_close(again.box[-1][0], first.box[-1][0])
    assert (again.box[-1][1] - first.box[-1][1]).abs().max() > 1e-3
    after = again.state.bank.queue
    assert after.filled.tolist() == [[True, False, False], [True, True, True]]
    assert (again.track_ids == -1).all()


@torch.no_grad()
def test_a_frame_to_come_is_sampled_like_a_past_one() -> None:
    """With time turned round, the offline model sees what v1's way of sampling sees."""
    ahead = tiny(V1, queue=s4d_core.QueueConfig(2, "future"), refine_interval="default")
    behind = ahead.replace(queue=s4d_core.QueueConfig(2, "past"))
    forward, backward = build(ahead), build(behind)
    near, far = (forward.observe(**plain(rigid(k))) for k in (1, 2))
    seen = forward(**rigid(0), future=[near, far])
    state = backward.remember(backward.observe(**plain(rigid(2))))
    state = backward.remember(backward.observe(**plain(rigid(1))), state)
    torch.testing.assert_close(backward(**rigid(0), state=state).box[-1], seen.box[-1])
    alone = forward(**rigid(0))
    assert (seen.box[-1] - alone.box[-1]).abs().max() > 1e-3
    ended = replace(near, present=torch.tensor([False, True]))
    partly = forward(**rigid(0), future=[ended])
    torch.testing.assert_close(partly.box[-1][0], alone.box[-1][0])
    with pytest.raises(InvalidInputError, match="expected at most 2 frames to come"):
        forward(**rigid(0), future=[near, far, far])
    with pytest.raises(InvalidInputError, match="keeps no feature maps"):
        forward.remember(near)


@torch.no_grad()
def test_offline_model_carries_instances_and_looks_ahead() -> None:
    model = build(tiny(OFFLINE, anchor_encoder=s4d_core.AnchorEncoderConfig(dims=(16, 4, 4, 8))))
    frames = [rigid(k) for k in range(4)]
    seen = [model.observe(**plain(f)) for f in frames]
    state = None
    for k, frame in enumerate(frames[:2]):
        output = model(**frame, state=state, future=seen[k + 1 : k + 4])
        state = output.state
    assert state.bank.queue is None and output.trace.temporal_mask.all()
    assert output.track_ids.min() == 0


@torch.no_grad()
def test_delayed_frames_are_the_offline_frames() -> None:
    """Fed as frames arrive, the offline model gives what it gives with the frames to come."""
    encoder = s4d_core.AnchorEncoderConfig(dims=(16, 4, 4, 8))
    model = build(tiny(OFFLINE, anchor_encoder=encoder, queue=s4d_core.QueueConfig(2, "future")))
    frames = [rigid(k, 1) for k in range(6)]
    seen = [model.observe(**plain(f)) for f in frames]
    state, bank = None, s4d_core.BankState.empty(model.config, 1, dtype=torch.float64, delayed=True)
    for k, frame in enumerate(frames):
        before = frames[max(k - 1, 0)]
        step = torch.linalg.inv(frame["lidar2global"]) @ before["lidar2global"]
        interval = frame["timestamp"] - before["timestamp"]
        images = [frame[n] for n in ("images", "lidar2img", "image_wh")]
        output, ready = model.delayed_frame(*images, step, interval, bank)
        bank = output.bank
        assert ready.item() is (k >= 2)
        if k >= 2:
            expected = model(**frames[k - 2], state=state, future=seen[k - 1 : k + 1])
            state = expected.state
            torch.testing.assert_close(output.box[-1], expected.box[-1], rtol=1e-8, atol=1e-8)
            assert torch.equal(output.track_ids, expected.track_ids)


def test_a_point_on_the_border_counts_half() -> None:
    """`border="zeros"`: grid_sample's rule, checked against grid_sample."""
    from s4d_core.aggregation_op import deformable_aggregation

    model = build(tiny(V1))
    levels = [torch.randn(6, 32, *size).double() for size in model.config.level_sizes]
    maps = model.arrange(levels, 6)
    where = torch.rand(1, 40, 1, 6, 2).double() * 1.2 - 0.1
    where[0, 0] = torch.tensor([0.0, 0.5])
    where[0, 1] = torch.tensor([1.0, 1.0])
    weights = torch.rand(1, 40, 1, 6, 4, 8).double()
    got = deformable_aggregation(maps, where, weights)
    expected = torch.zeros(40, 8, 4).double()
    for i, level in enumerate(levels):
        grid = where[0, :, 0].transpose(0, 1)[:, :, None] * 2 - 1
        taken = torch.nn.functional.grid_sample(level, grid, align_corners=False)[..., 0]
        taken = taken.permute(2, 0, 1).unflatten(-1, (8, 4))  # (40, 6, 8, 4)
        expected += (taken * weights[0, :, 0, :, i, :, None]).sum(1)
    torch.testing.assert_close(got[0], expected.flatten(1))


def test_v1_master_file_converts(tmp_path: Path) -> None:
    config = tiny(V1, backbone=s4d_core.ResNetConfig(widths=(8, 8, 8, 8), style="caffe"))
    weights = published_weights(config)
    renamed = {
        "head.instance_bank.anchor": "head.anchor",
        "head.instance_bank.instance_feature": "head.instance_feature.weight",
    }
    torch.save({renamed.get(k, k): v for k, v in weights.items()}, tmp_path / "x.pth")
    for source, interval in (("linxuewu_master", "elapsed"), ("linxuewu", "default")):
        s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", source, config)
        model = s4d_core.load_checkpoint(tmp_path / "out")
        assert model.config.refine_interval == interval
        assert model.config.refine_yaw is False and model.config.legacy_yaw_order is False
    first = weights["img_backbone.conv1.weight"].flip(1)  # BGR to RGB
    assert torch.equal(model.backbone.conv1.weight, first)
    assert torch.equal(model.head.bank.feature, weights["head.instance_bank.instance_feature"])


def test_v2_file_without_depth_converts_and_others_say_what_is_missing(tmp_path: Path) -> None:
    config = tiny(V2)
    weights = published_weights(config)
    less = {k: v for k, v in weights.items() if not k.startswith("depth_branch.")}
    torch.save(less, tmp_path / "x.pth")
    s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", "linxuewu", config)
    model = s4d_core.load_checkpoint(tmp_path / "out")
    assert model.config.depth is None and model.config.refine_yaw is True
    without = {k: v for k, v in less.items() if not k.startswith("img_backbone.layer4")}
    torch.save(without, tmp_path / "x.pth")
    with pytest.raises(s4d_core.CheckpointError, match=r"missing .*img_backbone.layer4 \d+"):
        s4d_core.convert_checkpoint(tmp_path / "x.pth", tmp_path / "out", "linxuewu", config)
