"""Does this frame follow the one before? The memory of time, pose and image sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .checks import CheckedFrame, Refusal
from .errors import FrameError, ImageError, PoseError, TimestampError
from .geometry import Matrix
from .policy import FramePolicy

__all__ = ["Step", "Timeline"]


@dataclass(frozen=True)
class Step:
    """How a frame enters the graph.

    Attributes:
        first: no usable past; the graph runs with ``state_valid`` 0.
        cause: why the past was dropped (a name of ``policy.CAUSES``, or ``"clock_set"``);
            None for an ordinary frame and for the very first one.
        time_interval: seconds since the frame before; 0 on a first frame.
        prev_to_current: (4, 4) float64, previous LiDAR frame to this one.
    """

    first: bool
    cause: str | None
    time_interval: float
    prev_to_current: Matrix


class Timeline:
    """Remembers the last accepted frame and judges the next one against it."""

    def __init__(self, policy: FramePolicy, max_time_interval: float) -> None:
        self._policy = policy
        self._max_interval = max_time_interval
        self._last: CheckedFrame | None = None
        self._sizes: tuple[tuple[int, int], ...] = ()
        self._refused_time = math.nan

    def clear(self) -> None:
        """Forget everything: the next frame is a first one."""
        self._last = None
        self._refused_time = math.nan

    def accept(self, frame: CheckedFrame) -> None:
        """The frame was run; it is now the past. Images are not kept."""
        self._sizes = frame.sizes
        frame.images = []
        self._last = frame
        self._refused_time = math.nan

    def judge(self, frame: CheckedFrame) -> Step:
        """How the frame is to be run. Does not change what ``accept`` stored.

        Raises:
            Refusal: the frame is not to be run.
        """
        if self._last is None:
            return Step(True, None, 0.0, np.eye(4))
        doubt = self._doubt(frame, self._last)
        if doubt is None:
            step = np.linalg.inv(frame.lidar2global) @ self._last.lidar2global
            return Step(False, None, frame.timestamp - self._last.timestamp, step)
        cause, error = doubt
        if cause == "backwards":
            if 0 < frame.timestamp - self._refused_time <= self._max_interval:
                return Step(True, "clock_set", 0.0, np.eye(4))
            self._refused_time = frame.timestamp
        if self._policy.action(cause) == "reset":
            return Step(True, cause, 0.0, np.eye(4))
        raise Refusal(cause, error)

    def _doubt(self, frame: CheckedFrame, last: CheckedFrame) -> tuple[str, FrameError] | None:
        """The first reason why the frame does not follow ``last``, or None."""
        if frame.sizes != self._sizes:
            return "size_changed", ImageError(
                f"expected image sizes {self._sizes} as in the frames before, got {frame.sizes}; "
                "call reset() after changing cameras"
            )
        interval = frame.timestamp - last.timestamp
        if interval == 0:
            return "repeated", TimestampError(
                f"expected a later timestamp than {last.timestamp:.6f} s, got the same again"
            )
        if interval < 0:
            return "backwards", TimestampError(
                f"expected a later timestamp than {last.timestamp:.6f} s, got "
                f"{frame.timestamp:.6f} s, {-interval:.6f} s before it"
            )
        if interval > self._max_interval:
            return "gap", TimestampError(
                f"expected the next frame within {self._max_interval:g} s, got one after "
                f"{interval:.3f} s"
            )
        if frame.camera_timestamps is not None and last.camera_timestamps is not None:
            same = [
                i
                for i, (a, b) in enumerate(
                    zip(frame.camera_timestamps, last.camera_timestamps, strict=True)
                )
                if a == b
            ]
            if same:
                return "stale_camera", TimestampError(
                    f"expected a new image from every camera, got the same again from "
                    f"camera number {', '.join(map(str, same))}"
                )
        return self._jump(frame, last, interval)

    def _jump(
        self, frame: CheckedFrame, last: CheckedFrame, interval: float
    ) -> tuple[str, FrameError] | None:
        moved = last.lidar2global[:3, :3].T @ (frame.lidar2global[:3, 3] - last.lidar2global[:3, 3])
        turned = last.lidar2global[:3, :3].T @ frame.lidar2global[:3, :3]
        distance = float(np.linalg.norm(moved))
        angle = math.acos(min(1.0, max(-1.0, (float(np.trace(turned)) - 1) / 2)))
        far = distance > self._policy.max_speed * interval + 2.0
        fast = angle > self._policy.max_turn_rate * interval + 0.2
        if not (far or fast):
            return None
        return "pose_jump", PoseError(
            f"expected at most {self._policy.max_speed:g} m/s and "
            f"{self._policy.max_turn_rate:g} rad/s since the frame before, got {distance:.2f} m "
            f"and {angle:.3f} rad in {interval:.3f} s"
        )
