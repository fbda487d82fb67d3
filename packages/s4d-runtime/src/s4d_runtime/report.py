"""What happened to one frame, for the caller and for the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

__all__ = ["FrameReport", "log_event"]

log = logging.getLogger("s4d_runtime")


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


def log_event(what: str, cause: str, message: str) -> None:
    """A warning for people, with the fields ``event`` and ``cause`` for ``JsonLogFormatter``."""
    fields = {"event": what, "cause": cause}
    log.warning("%s (%s) %s", what, cause, message, extra={"s4d": fields})
