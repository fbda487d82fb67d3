"""Any frame at all: an answer or a named error, and the run goes on as if it never came."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s4d_runtime import Camera, Pipeline
from s4d_runtime.errors import FrameError, S4DError
from s4d_runtime.rig import rig_frames

NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**400), 10**400),
    st.sampled_from([0.0, -0.0, 1e-320, 1e308, -1e308, np.float32(3), np.int64(-7), True]),
)
JUNK = st.one_of(
    st.none(),
    st.text(max_size=6),
    NUMBERS,
    st.lists(NUMBERS, max_size=6),
    st.sampled_from(
        [
            *(b"bytes", object(), {}, {"intrinsic": 1}, (), [[]], [None] * 6, ["a"] * 6, range(6)),
            *(np.zeros(()), np.zeros(0), np.zeros((3, 3), complex), np.zeros((4, 4), "U3")),
            *(np.full((3, 3), None), np.eye(4)[::-1], np.eye(4) * np.nan, np.eye(3, dtype=bool)),
            *(np.zeros((90, 160, 3), np.int8), np.zeros((90, 160, 4), np.uint8)),
            *(np.zeros((1, 1, 3), np.uint8), np.zeros((8, 20000, 3), np.uint8)),
            *(np.zeros((2, 90, 160, 3), np.uint8), np.zeros((8, 16000, 3), np.uint8)),
        ]
    ),
)


@st.composite
def damage(draw, frame):
    """A frame with one to three of its parts replaced or bent."""
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["field", "image", "camera", "entry", "pose", "time"]))
        index = draw(st.integers(0, 5))
        if kind == "field":
            names = ["images", "timestamp", "lidar2global", "cameras", "camera_timestamps"]
            frame = replace(frame, **{draw(st.sampled_from(names)): draw(JUNK)})
        elif kind == "time":
            frame = replace(frame, timestamp=draw(NUMBERS))
        elif kind == "pose" and isinstance(frame.lidar2global, np.ndarray):
            pose = np.array(frame.lidar2global)
            if pose.shape == (4, 4) and pose.dtype == np.float64:
                pose[draw(st.integers(0, 3)), draw(st.integers(0, 3))] = draw(st.floats())
                frame = replace(frame, lidar2global=pose)
        elif kind == "image" and isinstance(frame.images, list) and len(frame.images) == 6:
            images = list(frame.images)
            images[index] = draw(JUNK)
            frame = replace(frame, images=images)
        elif isinstance(frame.cameras, list) and len(frame.cameras) == 6:
            cameras = list(frame.cameras)
            if kind == "camera":
                cameras[index] = draw(JUNK | st.builds(Camera, JUNK, JUNK))
            elif isinstance(cameras[index], Camera):
                try:
                    k = np.array(cameras[index].intrinsic, dtype=np.float64)
                    k[draw(st.integers(0, 2)), draw(st.integers(0, 2))] = draw(st.floats())
                    cameras[index] = Camera(k, cameras[index].lidar2camera)
                except (TypeError, ValueError, IndexError, OverflowError):
                    continue
            frame = replace(frame, cameras=cameras)
    return frame


@pytest.fixture(scope="module")
def pipelines(artifact):
    policies = ("strict", "tolerant")
    loaded = [Pipeline.load(artifact, threads=1, policy=p) for p in policies]
    yield loaded
    for pipeline in loaded:
        pipeline.close()


@settings(max_examples=600, deadline=None, suppress_health_check=[*HealthCheck])
@given(data=st.data())
def test_fuzz_frames(pipelines, data):
    pipeline = pipelines[data.draw(st.integers(0, 1))]
    pipeline.reset()
    frames = rig_frames(pipeline.manifest, (90, 160), interval=0.5)
    sound = [next(frames) for _ in range(3)]
    before = pipeline(sound[0])
    assert before is not None
    bad = data.draw(damage(sound[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a NumPy warning means that bad input reached arithmetic
        try:
            result = pipeline(bad)
        except S4DError as error:
            assert isinstance(error, FrameError) and "\n" not in str(error)
            assert len(str(error)) < 1000
            result = None
    if result is None:
        after = pipeline(sound[2])
        assert after is not None
        # Still the second frame since the reset: nothing of the bad one is in the state.
        assert after.boxes[0, 5] == 2 and after.boxes[0, 0] == 1.0
    else:
        assert np.isfinite(result.boxes).all()


@pytest.mark.parametrize("thing", [None, 1, "frame", {}, object()])
def test_not_a_frame(pipeline, frames, thing):
    pipeline(next(frames))
    with pytest.raises(FrameError, match="expected an s4d_runtime"):
        pipeline(thing)
    assert pipeline(next(frames)).boxes[0, 5] == 2
