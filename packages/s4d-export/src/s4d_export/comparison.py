"""Errors between two roll-outs of the same frames, row by row and id by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .matching import RowMatch, Rows, box_distance, match_rows

__all__ = ["TOLERANCES", "Comparison", "Tolerance"]

# State of models that keep feature maps of frames; entries have a fixed place.
QUEUE_STATE = {"next_maps", "next_lidar2img", "next_from_newest", "next_age", "next_filled"}
FrameResult = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """Limits of a passing comparison.

    ``boxes`` and ``scores``: largest absolute error over matched detections (metres, radians,
    metres per second mixed; scores 0..1). ``quantile``: the share of box rows that must keep the
    limit (1 in float32; in lower precision single rows jump where a point crosses an image
    border). ``unmatched``: share of rows that may find no partner. ``radius``: how far apart two
    rows may be and still be taken for one instance. ``ids``: must ids be equal up to ties?
    """

    boxes: float
    scores: float
    quantile: float
    unmatched: float
    radius: float
    ids: bool


TOLERANCES = {
    "fp32": Tolerance(1e-3, 1e-3, 1.0, 0.0, 1e-2, True),
    "fp16": Tolerance(0.1, 2e-2, 0.9, 0.1, 0.5, False),
    "int8": Tolerance(0.5, 5e-2, 0.8, 0.3, 1.0, False),
}


@dataclass
class Errors:
    """All absolute errors of one tensor, and the sums for a cosine."""

    values: list[NDArray[np.float64]] = field(default_factory=list)
    dot: float = 0.0
    norm_a: float = 0.0
    norm_b: float = 0.0

    def add(self, a: NDArray[Any], b: NDArray[Any], error: NDArray[np.float64]) -> None:
        a64, b64 = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        self.values.append(np.asarray(error, np.float64).ravel())
        self.dot += float(a64 @ b64)
        self.norm_a += float(a64 @ a64)
        self.norm_b += float(b64 @ b64)

    def summary(self) -> dict[str, float]:
        errors = np.concatenate(self.values) if self.values else np.zeros(0)
        if not errors.size:
            return {"max": 0.0, "p99.9": 0.0, "mean": 0.0, "cosine": 1.0}
        norm = float(np.sqrt(self.norm_a) * np.sqrt(self.norm_b))
        return {
            "max": float(errors.max()),
            "p99.9": float(np.quantile(errors, 0.999)),
            "mean": float(errors.mean()),
            "cosine": self.dot / norm if norm else 1.0,
        }


class Comparison:
    """Collects frame after frame; ``result`` judges.

    Ids: with equal arithmetic they are equal. Where two scores tie within rounding, the two
    programs may hand out the next two ids in the other order, and every later frame repeats it.
    Such a pair is a consistent renaming (one to one, for the whole life of the tracks) and is
    counted as ``renamed``; an id that changes its partner is ``wrong``.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.frames = 0
        self.errors: dict[str, Errors] = {}
        self.rows = self.unmatched = self.cut_ties = 0
        self.ids = {"equal": 0, "renamed": 0, "wrong": 0}
        self.labels_wrong = 0
        self.box_rows: list[NDArray[np.float64]] = []
        self.finite = True
        self._partner: dict[int, int] = {}
        self._taken: dict[int, int] = {}

    def reset(self) -> None:
        """The tracks were reset on both sides: ids start anew."""
        self._partner.clear()
        self._taken.clear()

    def add(self, expected: FrameResult, got: FrameResult) -> None:
        """One frame: the graph's outputs by name, from the reference and from the candidate."""
        self.frames += 1
        for table in (expected, got):
            self.finite &= all(
                np.isfinite(value).all() for value in table.values() if value.dtype.kind == "f"
            )
        self._detections(expected, got)
        if "next_anchor" in expected and "next_anchor" in got:
            self._state(expected, got)
        for name in sorted(expected.keys() & got.keys() & QUEUE_STATE):
            self._record(name, expected[name], got[name])

    def _detections(self, a: FrameResult, b: FrameResult) -> None:
        match = match_rows(
            _detection_rows(a), _detection_rows(b), self.tolerance.radius, 6, self.tolerance.ids
        )
        self._count(match, a["scores"], b["scores"])
        i, j = match.first, match.second
        distance = box_distance(a["boxes"][i].astype(np.float64), b["boxes"][j].astype(np.float64))
        self.box_rows.append(distance)
        self._record("boxes", a["boxes"][i], b["boxes"][j], yaw_column=6)
        self._record("scores", a["scores"][i], b["scores"][j])
        self.labels_wrong += int((a["labels"][i] != b["labels"][j]).sum())
        self._pair_ids(a["track_ids"][i], b["track_ids"][j])

    def _state(self, a: FrameResult, b: FrameResult) -> None:
        match = match_rows(
            _state_rows(a), _state_rows(b), self.tolerance.radius, None, self.tolerance.ids
        )
        self._count(match, a["next_confidence"], b["next_confidence"])
        i, j = match.first, match.second
        for name in ("next_anchor", "next_feature", "next_confidence"):
            self._record(name, a[name][i], b[name][j])
        self._pair_ids(a["next_track_id"][i], b["next_track_id"][j])
        counter = "next_id_counter"
        self._record(counter, a[counter].astype(np.float64), b[counter].astype(np.float64))

    def _record(
        self, name: str, a: NDArray[Any], b: NDArray[Any], yaw_column: int | None = None
    ) -> None:
        error = np.abs(a.astype(np.float64) - b.astype(np.float64))
        if yaw_column is not None and error.size:
            turned = error[:, yaw_column] % (2 * np.pi)
            error[:, yaw_column] = np.minimum(turned, 2 * np.pi - turned)
        self.errors.setdefault(name, Errors()).add(a, b, error)

    def _count(self, match: RowMatch, score_a: NDArray[Any], score_b: NDArray[Any]) -> None:
        """Rows without partner; those that tie with the last place of the list are no error.

        A tie is a distance that the errors of the matched rows of this frame explain.
        """
        self.rows += len(score_a)
        noise = np.abs(score_a[match.first] - score_b[match.second]).max(initial=0.0)
        margin = min(2 * float(noise) + 1e-6, self.tolerance.scores)
        for rows, own, other in (
            (match.left_over_first, score_a, score_b),
            (match.left_over_second, score_b, score_a),
        ):
            if len(rows) == 0:
                continue
            at_cut = own[rows] - other.min() <= margin
            self.cut_ties += int(at_cut.sum())
            self.unmatched += int((~at_cut).sum())

    def _pair_ids(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            known, taken = self._partner.get(left), self._taken.get(right)
            if known is None and taken is None:
                self._partner[left], self._taken[right] = right, left
            elif known != right or taken != left:
                self.ids["wrong"] += 1
                continue
            self.ids["equal" if left == right else "renamed"] += 1

    def result(self) -> dict[str, Any]:
        """Figures and verdict, ready for JSON."""
        limit = self.tolerance
        tensors = {name: errors.summary() for name, errors in self.errors.items()}
        boxes = np.concatenate(self.box_rows) if self.box_rows else np.zeros(0)
        within = float((boxes <= limit.boxes).mean()) if boxes.size else 1.0
        share = self.unmatched / max(1, 2 * self.rows)
        reasons = []
        if not self.finite:
            reasons.append("an output is not finite")
        if within < limit.quantile:
            reasons.append(
                f"{(1 - within) * 100:.3g} % of the boxes are off by more than {limit.boxes:g}"
            )
        scores = tensors.get("scores", {"max": 0.0, "p99.9": 0.0})
        worst = scores["max"] if limit.quantile >= 1 else scores["p99.9"]
        if worst > limit.scores:
            reasons.append(f"scores are off by {worst:.3g}, more than {limit.scores:g}")
        if share > limit.unmatched:
            reasons.append(f"{self.unmatched} rows have no counterpart")
        if limit.ids and self.ids["wrong"]:
            reasons.append(f"{self.ids['wrong']} track ids differ beyond ties")
        if limit.ids and self.labels_wrong:
            reasons.append(f"{self.labels_wrong} labels differ")
        return {
            "passed": not reasons,
            "reasons": reasons,
            "frames": self.frames,
            "tensors": tensors,
            "rows": self.rows,
            "boxes_within_tolerance": within,
            "unmatched": self.unmatched,
            "ties_at_the_cut": self.cut_ties,
            "labels_wrong": self.labels_wrong,
            "ids": dict(self.ids),
            "tolerance": {k: getattr(limit, k) for k in limit.__dataclass_fields__},
        }


def _detection_rows(frame: FrameResult) -> Rows:
    return Rows(
        frame["boxes"].astype(np.float64),
        frame["scores"].astype(np.float64),
        frame["labels"].astype(np.int64),
        frame["track_ids"].astype(np.int64),
    )


def _state_rows(frame: FrameResult) -> Rows:
    ids = frame["next_track_id"].astype(np.int64)
    return Rows(
        frame["next_anchor"].astype(np.float64),
        frame["next_confidence"].astype(np.float64),
        np.zeros_like(ids),
        ids,
    )
