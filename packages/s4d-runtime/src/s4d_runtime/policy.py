"""What to do with a frame that is not as it should be: one documented action per cause."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from .errors import PolicyError

__all__ = ["CAUSES", "RECOVERABLE", "Action", "FramePolicy"]

Action = Literal["error", "skip", "reset"]

# Causes where the frame itself is sound and only the past is in doubt: a reset can use it.
RECOVERABLE = ("repeated", "backwards", "gap", "pose_jump", "size_changed")


@dataclass(frozen=True)
class FramePolicy:
    """Action per cause, and the limits that define the causes.

    ``"error"`` raises the named error. ``"skip"`` returns None. Both leave the state as it was.
    ``"reset"`` forgets the past and runs the frame as a first one; it is allowed only where the
    frame itself is sound.

    Attributes:
        missing_camera: an image or a calibration is None, or their number is not the model's.
        bad_image: not (H, W, 3) uint8, or of an unusable size.
        size_changed: a camera's image size is not that of the frames before.
        bad_calibration: not finite, not rigid, or made for another image size.
        bad_pose: ``lidar2global`` is not finite or not rigid.
        bad_time: the timestamp is not a finite number.
        stale_camera: a camera's own timestamp is further than ``max_camera_skew`` from the
            frame's, or the same as in the frame before. Only where ``camera_timestamps`` is given.
        repeated: the timestamp is that of the frame before.
        backwards: the timestamp is before that of the frame before. A second frame that goes on
            from the refused one shows that the clock was set: it is a reset, whatever the action.
        gap: more seconds than the artifact's ``max_time_interval``.
        pose_jump: the vehicle moved faster than ``max_speed`` or ``max_turn_rate`` allow.
        max_camera_skew: seconds.
        max_speed: metres per second, above a margin of 2 m.
        max_turn_rate: radians per second, above a margin of 0.2 rad.
    """

    missing_camera: Action = "error"
    bad_image: Action = "error"
    size_changed: Action = "error"
    bad_calibration: Action = "error"
    bad_pose: Action = "error"
    bad_time: Action = "error"
    stale_camera: Action = "error"
    repeated: Action = "error"
    backwards: Action = "error"
    gap: Action = "reset"
    pose_jump: Action = "reset"
    max_camera_skew: float = 0.15
    max_speed: float = 100.0
    max_turn_rate: float = 4.0

    def __post_init__(self) -> None:
        for cause in CAUSES:
            action = getattr(self, cause)
            allowed = get_args(Action) if cause in RECOVERABLE else ("error", "skip")
            if action not in allowed:
                raise PolicyError(f"expected {cause} to be one of {allowed}, got {action!r}")
        for limit in ("max_camera_skew", "max_speed", "max_turn_rate"):
            value = getattr(self, limit)
            if not value > 0:
                raise PolicyError(f"expected {limit} above 0, got {value!r}")

    def action(self, cause: str) -> Action:
        """The action for a cause of ``CAUSES``."""
        action: Action = getattr(self, cause)
        return action

    @classmethod
    def tolerant(cls) -> FramePolicy:
        """Never raise: reset where the frame is sound, else skip."""
        return cls(**{c: "reset" if c in RECOVERABLE else "skip" for c in CAUSES})  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> FramePolicy:
        """Policy from ``"strict"``, ``"tolerant"`` or ``"[preset,]cause=action,..."``.

        Raises:
            PolicyError: unknown preset, cause or action.
        """
        policy = cls()
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals and key in ("strict", "tolerant"):
                policy = cls.tolerant() if key == "tolerant" else cls()
            elif equals and key in CAUSES:
                policy = replace(policy, **{key: value})  # type: ignore[arg-type]
            else:
                raise PolicyError(
                    f"expected 'strict', 'tolerant' or cause=action with a cause of "
                    f"{', '.join(CAUSES)}, got {part!r}"
                )
        return policy


CAUSES: tuple[str, ...] = tuple(
    f.name for f in fields(FramePolicy) if not f.name.startswith("max_")
)
