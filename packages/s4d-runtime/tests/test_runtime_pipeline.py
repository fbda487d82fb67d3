"""Frame after frame: state, resets, ids, images, threads, statistics, the end."""

from __future__ import annotations

import itertools
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from runtime_tiny import echo, load

import s4d_runtime.pipeline as pipeline_module
from s4d_runtime import Camera, Pipeline
from s4d_runtime.errors import (
    BackendError,
    BadOutputError,
    FrameError,
)
from s4d_runtime.rig import rig_frames


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
