"""State between frames: first frame, gaps, resets, refused frames, ids."""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

import s4d_runtime.pipeline as pipeline_module
from s4d_runtime import Camera, Frame, FramePolicy, Pipeline
from s4d_runtime.errors import (
    BackendError,
    BadOutputError,
    CalibrationError,
    CameraCountError,
    FrameError,
    ImageError,
    PolicyError,
    PoseError,
    TimestampError,
)
from s4d_runtime.rig import rig_frames


def echo(detections):
    """What the tiny graph was given (see runtime_tiny)."""
    row = detections.boxes[0]
    return {"dt": row[0], "valid": row[1], "moved": row[2:5], "count": row[5]}


def load(artifact, **options):
    return Pipeline.load(artifact, threads=1, **options)


def test_first_and_later_frames(pipeline, frames):
    first = echo(pipeline(next(frames)))
    assert (first["valid"], first["dt"], first["count"]) == (0, 0, 1)
    assert pipeline.last.outcome == "first"
    for number in range(2, 6):
        later = echo(pipeline(next(frames)))
        assert (later["valid"], later["dt"], later["count"]) == (1, 0.5, number)
        assert pipeline.last.outcome == "ok"
    # 4 m in half a second, seen from the new frame: the old origin lies behind.
    assert later["moved"][1] == pytest.approx(-4.0, abs=0.05)


def test_pose_difference_is_formed_in_float64(pipeline, frames):
    far = np.eye(4)
    far[:3, 3] = (4.1e6, 5.2e6, 30.0)  # a map frame: float32 would lose half a metre
    a, b = itertools.islice(frames, 2)
    pipeline(replace(a, lidar2global=far @ a.lidar2global))
    moved = echo(pipeline(replace(b, lidar2global=far @ b.lidar2global)))["moved"]
    expected = (np.linalg.inv(b.lidar2global) @ a.lidar2global)[:3, 3]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_lidar2img_goes_to_network_pixels(pipeline, frames):
    frame = next(frames)
    camera = frame.cameras[0]
    given = pipeline(frame).boxes[1]
    scale = max(32 / 90, 88 / 160)  # 0.55: 90 x 160 becomes 49 x 88, of which the lower 32 stay
    raw = np.eye(4)
    raw[:3, :3] = camera.intrinsic
    network = np.diag([scale, scale, 1.0, 1.0])
    network[1, 2] = -(int(90 * scale) - 32)
    expected = (network @ raw @ camera.lidar2camera).reshape(-1)[:10]
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("interval", [2.5, 100.0])
def test_gap_is_a_reset(pipeline, frames, interval):
    a, b, c = itertools.islice(frames, 3)
    pipeline(a)
    pipeline(b)
    after = echo(pipeline(replace(c, timestamp=b.timestamp + interval)))
    assert (after["valid"], after["dt"], after["count"]) == (0, 0, 1)
    assert (pipeline.last.outcome, pipeline.last.cause) == ("reset", "gap")


def test_explicit_reset_equals_a_fresh_pipeline(artifact, pipeline, frames):
    run = list(itertools.islice(frames, 4))
    before = [pipeline(f) for f in run]
    pipeline.reset()
    again = [pipeline(f) for f in run]
    for a, b in zip(before, again, strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.track_ids, b.track_ids)


def test_ids_of_a_lost_past_are_not_used_again(pipeline, frames):
    a, b, c = itertools.islice(frames, 3)
    first = pipeline(a)
    second = pipeline(b)
    np.testing.assert_array_equal(first.track_ids, second.track_ids)
    after = pipeline(replace(c, timestamp=c.timestamp + 10))
    assert after.track_ids.min() > second.track_ids.max()
    assert after.track_ids.dtype == np.int64


def test_ids_survive_renumbering(pipeline, frames, monkeypatch):
    """The graph's 32-bit counter is turned back long before it overflows; users see no change."""
    monkeypatch.setattr(pipeline_module, "RENUMBER_ABOVE", 20)
    a, b = itertools.islice(frames, 2)
    pipeline(a)
    before = pipeline(replace(b, timestamp=b.timestamp + 10)).track_ids  # ids no longer from 0
    for frame in itertools.islice(frames, 30):
        result = pipeline(replace(frame, timestamp=frame.timestamp + 10))
        np.testing.assert_array_equal(result.track_ids, before)
    counter = int(pipeline._backend.read_state("state_id_counter")[0])
    assert counter <= 20 + 6
    after = pipeline(replace(frame, timestamp=frame.timestamp + 100))
    assert after.track_ids.min() > before.max() + 30 * 6 - 1


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


def test_network_output_that_is_not_finite(pipeline, frames, monkeypatch):
    a, b, c, d = itertools.islice(frames, 4)
    pipeline(a)
    white = np.full((90, 160, 3), 255, np.uint8)
    monkeypatch.setattr(type(pipeline._backend), "advice", "; try this")
    with pytest.raises(BadOutputError, match=r"a first one; try this$"):
        pipeline(replace(b, images=[white] * 6))
    assert echo(pipeline(c))["valid"] == 0
    assert echo(pipeline(d))["valid"] == 1


def test_results_are_not_overwritten_by_the_next_frame(pipeline, frames):
    first = pipeline(next(frames))
    copy = first.boxes.copy()
    pipeline(next(frames))
    np.testing.assert_array_equal(first.boxes, copy)


def test_turned_and_strided_images_are_read_right(artifact):
    with load(artifact) as a, load(artifact) as b:
        frame = next(rig_frames(a.manifest, (90, 160)))
        turned = [np.ascontiguousarray(i[..., ::-1])[..., ::-1] for i in frame.images]
        np.testing.assert_array_equal(a(frame).boxes, b(replace(frame, images=turned)).boxes)


def test_dlpack_host_images(artifact):
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    with load(artifact) as a, load(artifact) as b:
        frame = next(rig_frames(a.manifest, (90, 160)))
        wrapped = replace(frame, images=[Foreign(i.copy()) for i in frame.images])
        np.testing.assert_array_equal(a(frame).boxes, b(wrapped).boxes)


def test_pipelines_in_threads_do_not_disturb_each_other(artifact):
    def run(seed, results):
        with load(artifact) as pipeline:
            frames = rig_frames(pipeline.manifest, (90, 160), interval=0.1, seed=seed)
            results[seed] = [pipeline(f).boxes for f in itertools.islice(frames, 20)]

    alone: dict = {}
    together: dict = {}
    for seed in range(3):
        run(seed, alone)
    threads = [threading.Thread(target=run, args=(s, together)) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        np.testing.assert_array_equal(alone[seed], together[seed])


def test_policy_text():
    policy = FramePolicy.parse("tolerant, gap=error")
    assert (policy.gap, policy.bad_image, policy.backwards) == ("error", "skip", "reset")
    for text in ("bad_image=reset", "gap=maybe", "lenient", "max_speed=3"):
        with pytest.raises(PolicyError):
            FramePolicy.parse(text)
    with pytest.raises(PolicyError):
        FramePolicy(max_speed=float("nan"))


def test_stats_and_prometheus(pipeline, frames):
    for frame in itertools.islice(frames, 3):
        pipeline(frame)
    with pytest.raises(FrameError):
        pipeline(replace(frame, images=[]))
    snapshot = pipeline.stats.snapshot()
    assert snapshot["counters"] == {
        **{"frames": 3, "first": 1, "refused": 1, "cause.missing_camera": 1}
    }
    latency = snapshot["latency_ms"]
    assert latency["total"]["max"] >= latency["total"]["p50"] >= latency["infer"]["p50"] > 0
    text = pipeline.stats.prometheus()
    assert 's4d_events_total{event="frames"} 3' in text
    assert 's4d_latency_seconds_count{stage="total"} 3' in text


def test_camera_takes_lists(pipeline, frames):
    frame = next(frames)
    plain = [Camera(c.intrinsic.tolist(), c.lidar2camera.tolist()) for c in frame.cameras]
    assert len(pipeline(replace(frame, cameras=plain))) == 6


def test_a_closed_pipeline_says_so(artifact, frames):
    pipeline = Pipeline.load(artifact, threads=1)
    pipeline.close()
    pipeline.close()
    for action in (
        lambda: pipeline(next(frames)),
        lambda: pipeline.prepare(0, next(frames).images[0]),
        lambda: pipeline.image_buffers([(90, 160)]),
        pipeline.reset,
    ):
        with pytest.raises(BackendError, match="closed; load the artifact again"):
            action()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_is_refused_and_can_load_its_own(artifact, pipeline, frames):
    expected = pipeline(next(frames))
    frame = next(frames)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pipeline(frame)
        except BackendError as error:
            pipeline.close()  # touches nothing of the parent's
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert "loaded in process" in answer.read()
    assert os.waitpid(child, 0)[1] == 0
    assert expected is not None and pipeline(frame) is not None


@pytest.mark.parametrize("threads", (-1, 1.5))
def test_impossible_threads(artifact, threads):
    with pytest.raises(BackendError, match="threads as a number of 0 or more"):
        Pipeline.load(artifact, threads=threads)
