"""What happened to one frame."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["FrameReport"]


@dataclass(frozen=True)
class FrameReport:
    """What happened to the last frame.

    Attributes:
        outcome: ``"ok"``, ``"first"``, ``"reset"``, ``"skipped"`` or ``"error"``.
        cause: a name of ``policy.CAUSES``, ``"clock_set"``, ``"bad_output"``, ``"backend"`` or
            None.
        message: the error's text, or empty.
        milliseconds: time per stage.
    """

    outcome: str
    cause: str | None = None
    message: str = ""
    milliseconds: dict[str, float] = field(default_factory=dict)
