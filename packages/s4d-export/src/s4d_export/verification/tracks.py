"""Two free roll-outs compared as a user sees them: are the same objects found and followed?

A tracker feeds its state back and cuts lists by rank. A difference in the last digit can decide
which of two equal instances is carried on, and from then on the two programs see other rows. That
is no error, and comparing numbers row by row cannot tell it from one. What must hold is that both
find the same objects at the same places and follow them by the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRACK_LIMITS", "TrackComparison", "TrackLimits"]

CONFIDENT = 0.2  # score from which s4d-train counts a detection as a track
BEST = 10  # detections of a frame that are judged at any score: weights may be untrained
RADIUS = 2.0  # metres between two centres of one object, the matching distance of nuScenes' AMOTA
FrameResult = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TrackLimits:
    """What a passing roll-out keeps.

    ``lost``: share of confident detections of either side without a counterpart on the other.
    ``place``: mean distance of the centres, metres. ``score``: mean absolute difference.
    ``switches``: share of paired detections where an object changes its id on one side only.
    Of both shares two standard deviations more are allowed.
    """

    lost: float
    place: float
    score: float
    switches: float


# Losing or inventing a share of the confident detections moves recall or precision by at most that
# share, and mAP by the part of it that does not cancel out. The metrics are to hold within 0.0005,
# 0.002 and 0.01; measured on trained weights the shares are a few times what mAP moves by.
TRACK_LIMITS = {
    "fp32": TrackLimits(0.005, 0.05, 0.01, 0.02),
    "fp16": TrackLimits(0.01, 0.1, 0.02, 0.02),
    "int8": TrackLimits(0.03, 0.3, 0.04, 0.05),
}


class TrackComparison:
    """Collects frame after frame; ``result`` judges.

    A confident detection has a score of at least 0.2 or is one of the ten best of its frame. Its
    counterpart is the nearest detection of the other side within two metres, at any score, and with
    its label; below a score of 0.2 the class is as good as undecided, and another is taken too.
    """

    def __init__(self, limits: TrackLimits) -> None:
        self.limits = limits
        self.judged = [0, 0]
        self.lost = [0, 0]
        self.switches = self.followed = 0
        self.places: list[NDArray[np.float64]] = []
        self.scores: list[NDArray[np.float64]] = []
        self._partner: dict[int, int] = {}

    def reset(self) -> None:
        """The tracks were reset on both sides: ids start anew."""
        self._partner.clear()

    def add(self, expected: FrameResult, got: FrameResult) -> None:
        """One frame: boxes, scores, labels and track ids of both sides."""
        sides = (expected, got)
        for number, (own, other) in enumerate((sides, sides[::-1])):
            rows = _confident(own["scores"])
            first, second = _pairs(own, other, rows)
            self.judged[number] += len(rows)
            self.lost[number] += len(rows) - len(first)
            if number == 0:
                away = own["boxes"][first, :3].astype(float) - other["boxes"][second, :3]
                self.places.append(np.linalg.norm(away, axis=1))
                self.scores.append(np.abs(own["scores"][first] - other["scores"][second]))
                self._follow(own["track_ids"][first], other["track_ids"][second])

    def _follow(self, ids: NDArray[Any], others: NDArray[Any]) -> None:
        for own, other in zip(ids.tolist(), others.tolist(), strict=True):
            if own < 0 and other < 0:
                continue
            self.followed += 1
            self.switches += self._partner.setdefault(own, other) != other
            self._partner[own] = other

    def result(self) -> dict[str, Any]:
        """Figures and verdict, ready for JSON."""
        limits = self.limits
        places = np.concatenate(self.places) if self.places else np.zeros(0)
        scores = np.concatenate(self.scores) if self.scores else np.zeros(0)
        found = {
            "judged": self.judged[0],
            "lost": self.lost[0],
            "added": self.lost[1],
            "place": float(places.mean()) if places.size else 0.0,
            "score": float(scores.mean()) if scores.size else 0.0,
            "switches": self.switches,
        }
        reasons = []
        if not self.judged[0]:
            reasons.append("the checkpoint detects nothing")
        for lost, judged, word in zip(self.lost, self.judged, ("lost", "added"), strict=True):
            if lost > _allowed(limits.lost, judged):
                reasons.append(f"{lost} of {judged} confident detections are {word}")
        for name, unit in (("place", " m"), ("score", "")):
            value, limit = found[name], getattr(limits, name)
            if not value <= limit:
                reasons.append(
                    f"{name} is off by {value:.3g}{unit} on average, more than {limit:g}"
                )
        if self.switches > _allowed(limits.switches, self.followed):
            reasons.append(f"{self.switches} of {self.followed} detections change their id")
        return {"passed": not reasons, "reasons": reasons, **found, "limits": vars(limits)}


def _allowed(share: float, count: int) -> float:
    """A share of `count`, and two standard deviations of such a number: few rows scatter more."""
    return share * count + 2 * float(np.sqrt(share * count))


def _confident(scores: NDArray[Any]) -> NDArray[np.int64]:
    rows = np.argsort(-scores, kind="stable")
    rank = np.arange(len(rows))
    return rows[(scores[rows] >= CONFIDENT) | (rank < BEST)]


def _pairs(
    own: FrameResult, other: FrameResult, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair `rows` of one side with detections of the other, nearest pairs first."""
    centres = own["boxes"][rows, :3].astype(np.float64)
    cost = np.linalg.norm(centres[:, None] - other["boxes"][None, :, :3], axis=-1)
    cost[~(cost <= RADIUS)] = np.inf  # NaN too
    another = own["labels"][rows][:, None] != other["labels"][None]
    sure = own["scores"][rows][:, None] >= CONFIDENT
    cost += np.where(another, np.where(sure, np.inf, 1.0), 0.0)
    # Of several detections on one object, the one of like score is the counterpart.
    cost += np.abs(own["scores"][rows][:, None] - other["scores"][None])
    cost[np.isnan(cost)] = np.inf
    first, second = [], []
    for flat in np.argsort(cost, axis=None, kind="stable"):
        row, column = divmod(int(flat), cost.shape[1])
        if not np.isfinite(cost[row, column]):
            break
        if rows[row] not in first and column not in second:
            first.append(int(rows[row]))
            second.append(column)
    return np.array(first, np.int64), np.array(second, np.int64)
