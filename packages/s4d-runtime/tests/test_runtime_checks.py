"""What is refused about a single frame, and the small memories beside the checks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from runtime_tiny import load

from s4d_runtime.calibration import Refusal
from s4d_runtime.errors import ImageError, PoseError, TimestampError
from s4d_runtime.geometry import is_rigid
from s4d_runtime.plans import MAX_PLANS, ResizePlans
from s4d_runtime.rig import rig_frames
from s4d_runtime.track_ids import TrackIds


def test_a_pose_that_float64_cannot_hold_to_the_millimetre(pipeline, frames):
    frame = next(frames)
    pose = frame.lidar2global.copy()
    pose[1, 3] = -1.1e8
    with pytest.raises(PoseError, match="within 1e"):
        pipeline(replace(frame, lidar2global=pose))
    pose[1, 3] = -0.9e8
    assert pipeline(replace(frame, lidar2global=pose)) is not None


@pytest.mark.parametrize("time", (1.7e18, -1.7e18, 1.7e12))
def test_a_time_in_smaller_units(pipeline, frames, time):
    with pytest.raises(TimestampError, match="Divide first"):
        pipeline(replace(next(frames), timestamp=time))


def test_a_bottom_row_makes_no_rigid_transform():
    matrix = np.eye(4)
    assert is_rigid(matrix)
    matrix[3, 0] = 1e-3
    assert not is_rigid(matrix)


def test_images_whose_pixels_share_memory(artifact):
    """A grey image seen as colour, and one column seen as an image."""
    with load(artifact) as a, load(artifact) as b:
        frame = next(rig_frames(a.manifest, (90, 160)))
        column = [image[:, :1] for image in frame.images]
        shared = [np.broadcast_to(image, (90, 160, 3)) for image in column]
        own = [np.ascontiguousarray(image) for image in shared]
        expected = a(replace(frame, images=own)).boxes
        np.testing.assert_array_equal(b(replace(frame, images=shared)).boxes, expected)


def test_an_image_that_must_grow_too_much():
    plans = ResizePlans((256, 704))
    assert plans.of((16, 44), "front").resize == 16
    with pytest.raises(Refusal) as refused:
        plans.of((15, 44), "front")
    assert isinstance(refused.value.error, ImageError) and refused.value.cause == "bad_image"


def test_sizes_that_change_all_the_time_do_not_fill_the_memory():
    plans = ResizePlans((32, 88))
    for height in range(100, 100 + 3 * MAX_PLANS):
        assert plans.of((height, 160), "front").raw_size == (height, 160)
    assert len(plans._plans) <= MAX_PLANS


def test_renumbered_ids_go_on_as_if_nothing_had_been_done():
    plain, turned = TrackIds(), TrackIds()
    for ids in (plain, turned):
        ids.restart_graph(1000)
    live = np.array([7, -1, 2, 90], np.int32)
    new, counter = turned.renumber(live, 100)
    assert new.tolist() == [1, -1, 0, 2] and counter == 3
    np.testing.assert_array_equal(turned.translate(new), plain.translate(live))
    # The ids that the graph gives next are those that it would have given.
    np.testing.assert_array_equal(
        turned.translate(np.arange(counter, counter + 5)), plain.translate(np.arange(100, 105))
    )
    again, counter = turned.renumber(np.array([4, 1], np.int32), 6)
    np.testing.assert_array_equal(turned.translate(again), [1101, 1007])
    assert turned.translate(np.array([counter])) == [1103]
