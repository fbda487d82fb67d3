"""The limits between a frame that follows the last one and a frame that does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from s4d_runtime.checks import CheckedFrame, Refusal
from s4d_runtime.policy import FramePolicy
from s4d_runtime.timeline import Step, Timeline

LIMIT = 2.0


def frame(time: float, distance: float = 0.0, turn: float = 0.0) -> CheckedFrame:
    """A frame of one small camera; the vehicle has moved along x and turned about z."""
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    pose[0, 3] = distance
    image = np.zeros((8, 8, 3), np.uint8)
    return CheckedFrame([image], [np.eye(3)], [np.eye(4)], pose, time, None)


def judge(after: CheckedFrame, policy: FramePolicy | None = None) -> Step:
    timeline = Timeline(policy or FramePolicy(), LIMIT)
    timeline.accept(frame(10.0))
    return timeline.judge(after)


def test_the_longest_step_is_still_a_step() -> None:
    step = judge(frame(10.0 + LIMIT))
    assert not step.first and step.time_interval == LIMIT
    assert judge(frame(10.0 + LIMIT + 1e-6)).cause == "gap"


@pytest.mark.parametrize("seconds", (0.1, 0.5, 2.0))
def test_a_jump_is_more_than_speed_and_margin_allow(seconds: float) -> None:
    policy = FramePolicy(max_speed=30.0)
    allowed = 30.0 * seconds + 2.0
    assert judge(frame(10 + seconds, allowed - 0.01), policy).cause is None
    assert judge(frame(10 + seconds, -allowed + 0.01), policy).cause is None
    assert judge(frame(10 + seconds, allowed + 0.01), policy).cause == "pose_jump"


@pytest.mark.parametrize("seconds", (0.1, 0.5))
def test_a_turn_is_more_than_rate_and_margin_allow(seconds: float) -> None:
    policy = FramePolicy(max_turn_rate=2.0)
    allowed = 2.0 * seconds + 0.2
    assert judge(frame(10 + seconds, 0, allowed - 0.001), policy).cause is None
    assert judge(frame(10 + seconds, 0, -allowed - 0.001), policy).cause == "pose_jump"


def test_the_same_wrong_time_again_does_not_set_the_clock() -> None:
    timeline = Timeline(FramePolicy(), LIMIT)
    timeline.accept(frame(10.0))
    for _ in range(3):
        with pytest.raises(Refusal):
            timeline.judge(frame(5.0))
    assert timeline.judge(frame(5.0 + LIMIT)).cause == "clock_set"
    with pytest.raises(Refusal):  # before the refused one: it does not go on from it
        timeline.judge(frame(1.0))
