"""Frames that are not as they should be: what each cause does, and that the next one goes on."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from runtime_tiny import echo, load

from s4d_runtime import Frame, FramePolicy
from s4d_runtime.errors import (
    CalibrationError,
    CameraCountError,
    ImageError,
    PolicyError,
    PoseError,
    TimestampError,
)
from s4d_runtime.rig import rig_frames


@pytest.mark.parametrize("interval", [2.5, 100.0])
def test_gap_is_a_reset(pipeline, frames, interval):
    a, b, c = itertools.islice(frames, 3)
    pipeline(a)
    pipeline(b)
    after = echo(pipeline(replace(c, timestamp=b.timestamp + interval)))
    assert (after["valid"], after["dt"], after["count"]) == (0, 0, 1)
    assert (pipeline.last.outcome, pipeline.last.cause) == ("reset", "gap")


def nan(matrix):
    broken = np.array(matrix)
    broken[0, 0] = np.nan
    return broken


def with_camera(frame: Frame, **changes) -> Frame:
    cameras = list(frame.cameras)
    cameras[2] = replace(cameras[2], **changes)
    return replace(frame, cameras=cameras)


def with_image(frame: Frame, image) -> Frame:
    images = list(frame.images)
    images[3] = image
    return replace(frame, images=images)


BROKEN = {
    "an image is None": (lambda f: with_image(f, None), CameraCountError, "missing_camera"),
    "five images": (
        lambda f: replace(f, images=f.images[:5]),
        CameraCountError,
        "missing_camera",
    ),
    "seven images": (
        lambda f: replace(f, images=[*f.images, f.images[0]]),
        CameraCountError,
        "missing_camera",
    ),
    "no images at all": (lambda f: replace(f, images=None), CameraCountError, "missing_camera"),
    "five cameras": (
        lambda f: replace(f, cameras=f.cameras[:5]),
        CameraCountError,
        "missing_camera",
    ),
    "float image": (
        lambda f: with_image(f, np.zeros((90, 160, 3), np.float32)),
        ImageError,
        "bad_image",
    ),
    "grey image": (lambda f: with_image(f, np.zeros((90, 160), np.uint8)), ImageError, "bad_image"),
    "planar image": (
        lambda f: with_image(f, np.zeros((3, 90, 160), np.uint8)),
        ImageError,
        "bad_image",
    ),
    "empty image": (
        lambda f: with_image(f, np.zeros((0, 160, 3), np.uint8)),
        ImageError,
        "bad_image",
    ),
    "not an array": (lambda f: with_image(f, "front.jpg"), ImageError, "bad_image"),
    "another size": (
        lambda f: with_image(f, np.zeros((100, 160, 3), np.uint8)),
        ImageError,
        "size_changed",
    ),
    "NaN intrinsic": (
        lambda f: with_camera(f, intrinsic=nan(f.cameras[2].intrinsic)),
        CalibrationError,
        "bad_calibration",
    ),
    "NaN extrinsic": (
        lambda f: with_camera(f, lidar2camera=nan(f.cameras[2].lidar2camera)),
        CalibrationError,
        "bad_calibration",
    ),
    "intrinsic of another size": (
        lambda f: with_camera(f, intrinsic=np.diag([10.0, 10.0, 1.0]) @ f.cameras[2].intrinsic),
        CalibrationError,
        "bad_calibration",
    ),
    "mirrored extrinsic": (
        lambda f: with_camera(f, lidar2camera=np.diag([-1.0, 1, 1, 1]) @ f.cameras[2].lidar2camera),
        CalibrationError,
        "bad_calibration",
    ),
    "scaled extrinsic": (
        lambda f: with_camera(f, lidar2camera=np.diag([2.0, 2, 2, 1]) @ f.cameras[2].lidar2camera),
        CalibrationError,
        "bad_calibration",
    ),
    "extrinsic in millimetres": (
        lambda f: with_camera(f, lidar2camera=np.eye(4) + np.eye(4, k=3) * 1500),
        CalibrationError,
        "bad_calibration",
    ),
    "wrong shape": (
        lambda f: with_camera(f, intrinsic=np.eye(4)),
        CalibrationError,
        "bad_calibration",
    ),
    "calibration is text": (
        lambda f: with_camera(f, intrinsic="K"),
        CalibrationError,
        "bad_calibration",
    ),
    "calibration is a dict": (
        lambda f: replace(f, cameras=[{"intrinsic": 1}] * 6),
        CalibrationError,
        "bad_calibration",
    ),
    "NaN pose": (lambda f: replace(f, lidar2global=nan(f.lidar2global)), PoseError, "bad_pose"),
    "sheared pose": (
        lambda f: replace(f, lidar2global=f.lidar2global + 0.1 * np.eye(4, k=1)),
        PoseError,
        "bad_pose",
    ),
    "NaN time": (lambda f: replace(f, timestamp=float("nan")), TimestampError, "bad_time"),
    "time in microseconds": (
        lambda f: replace(f, timestamp=1532402927647951),
        TimestampError,
        "bad_time",
    ),
    "time is text": (lambda f: replace(f, timestamp="now"), TimestampError, "bad_time"),
    "time stands still": (
        lambda f: replace(f, timestamp=f.timestamp - 0.5),
        TimestampError,
        "repeated",
    ),
    "time goes back": (
        lambda f: replace(f, timestamp=f.timestamp - 5),
        TimestampError,
        "backwards",
    ),
    "stale camera": (
        lambda f: replace(f, camera_timestamps=[f.timestamp] * 5 + [f.timestamp - 1]),
        TimestampError,
        "stale_camera",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_refused_frame_leaves_no_trace(artifact, case):
    """A broken frame is a named error in one sentence; the run goes on as if it never came."""
    breaks, error, cause = BROKEN[case]
    with load(artifact) as broken, load(artifact) as clean:
        frames = rig_frames(broken.manifest, (90, 160), interval=0.5)
        for number, frame in enumerate(itertools.islice(frames, 5)):
            if number in (2, 4):
                with pytest.raises(error) as caught:
                    broken(breaks(frame))
                message = str(caught.value)
                assert "expected" in message and "\n" not in message
                assert (broken.last.outcome, broken.last.cause) == ("error", cause)
            np.testing.assert_array_equal(broken(frame).boxes, clean(frame).boxes)
        assert broken.stats.counters[f"cause.{cause}"] == 2
        assert broken.stats.counters["frames"] == 5


def test_first_frame_broken_then_good(pipeline, frames):
    a, b = itertools.islice(frames, 2)
    with pytest.raises(ImageError):
        pipeline(with_image(a, np.zeros((5, 5, 3), np.uint8)))
    assert echo(pipeline(b))["valid"] == 0


@pytest.mark.parametrize("case", BROKEN)
def test_tolerant_policy_never_raises(artifact, case):
    breaks, _, cause = BROKEN[case]
    with load(artifact, policy="tolerant") as pipeline:
        frames = rig_frames(pipeline.manifest, (90, 160), interval=0.5)
        pipeline(next(frames))
        result = pipeline(breaks(next(frames)))
        if pipeline.policy.action(cause) == "skip":
            assert result is None and pipeline.last.outcome == "skipped"
        else:
            assert echo(result)["valid"] == 0 and pipeline.last.outcome == "reset"
        assert pipeline.last.cause == cause


def test_clock_set_back_recovers_with_the_second_frame(pipeline, frames):
    run = list(itertools.islice(frames, 6))
    for frame in run[:3]:
        pipeline(frame)
    with pytest.raises(TimestampError):
        pipeline(replace(run[3], timestamp=run[3].timestamp - 3600))
    after = echo(pipeline(replace(run[4], timestamp=run[4].timestamp - 3600)))
    assert after["valid"] == 0 and pipeline.last.cause == "clock_set"
    assert echo(pipeline(replace(run[5], timestamp=run[5].timestamp - 3600)))["valid"] == 1


def test_clock_glitch_forward_recovers(pipeline, frames):
    run = list(itertools.islice(frames, 5))
    pipeline(run[0])
    assert echo(pipeline(replace(run[1], timestamp=run[1].timestamp + 3600)))["valid"] == 0
    with pytest.raises(TimestampError):
        pipeline(run[2])
    assert echo(pipeline(run[3]))["valid"] == 0
    assert echo(pipeline(run[4]))["valid"] == 1


def test_pose_jump_is_a_reset_or_an_error(artifact):
    with load(artifact) as pipeline, load(artifact, policy="pose_jump=error") as strict:
        for each in (pipeline, strict):
            frames = rig_frames(each.manifest, (90, 160), interval=0.5)
            each(next(frames))
            frame = next(frames)
            away = frame.lidar2global.copy()
            away[0, 3] += 500
            if each is strict:
                with pytest.raises(PoseError, match="m/s"):
                    each(replace(frame, lidar2global=away))
                assert echo(each(frame))["valid"] == 1
            else:
                assert echo(each(replace(frame, lidar2global=away)))["valid"] == 0
                assert each.last.cause == "pose_jump"


def test_repeated_camera_image_is_stale(pipeline, frames):
    a, b = itertools.islice(frames, 2)
    pipeline(replace(a, camera_timestamps=[a.timestamp] * 6))
    stamps = [b.timestamp] * 6
    stamps[1] = b.timestamp - 0.1
    pipeline(replace(b, camera_timestamps=stamps))
    c = next(frames)
    late = replace(c, timestamp=b.timestamp + 0.04, camera_timestamps=[b.timestamp + 0.01] * 6)
    late.camera_timestamps[1] = stamps[1]
    with pytest.raises(TimestampError, match="camera number 1"):
        pipeline(late)


def test_policy_text():
    policy = FramePolicy.parse("tolerant, gap=error")
    assert (policy.gap, policy.bad_image, policy.backwards) == ("error", "skip", "reset")
    for text in ("bad_image=reset", "gap=maybe", "lenient", "max_speed=3"):
        with pytest.raises(PolicyError):
            FramePolicy.parse(text)
    with pytest.raises(PolicyError):
        FramePolicy(max_speed=float("nan"))
