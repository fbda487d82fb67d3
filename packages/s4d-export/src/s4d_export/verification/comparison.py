"""Errors between two programs on the same frames, row by row and id by id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuts import detection_ties, joined_ties, sure_labels
from .figures import TOLERANCES, Errors, Tolerance
from .matching import RowMatch, Rows, box_distance, match_rows, match_strays

__all__ = ["TOLERANCES", "Comparison", "Tolerance"]

# State of models that keep feature maps of frames; entries have a fixed place.
QUEUE_STATE = {"next_maps", "next_lidar2img", "next_from_newest", "next_age", "next_filled"}
FrameResult = Mapping[str, NDArray[Any]]


class Comparison:
    """Collects frame after frame; ``result`` judges.

    Ids: with equal arithmetic they are equal. Where two scores tie within rounding, the two
    programs may hand out the next two ids in the other order, and every later frame repeats it.
    Such a pair is a consistent renaming (one to one, for the whole life of the tracks) and is
    counted as ``renamed``; an id that changes its partner is ``wrong``.

    Rows without counterpart: see ``cuts``. Where the value that decided about a row is nearer the
    cut than twice the largest error of the frame's scores (and 1e-6), the row is a tie. An
    instance that only one program carries on because of a tie stays one while it lives. Labels
    are judged where the best class beats the second by more than that.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.frames = 0
        self.errors: dict[str, Errors] = {}
        self.rows = self.unmatched = self.cut_ties = 0
        self.ids = {"equal": 0, "renamed": 0, "wrong": 0}
        self.labels_wrong = self.counters_wrong = 0
        self.box_rows: list[NDArray[np.float64]] = []
        self.finite = True
        self._partner: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._exchanged: tuple[set[int], set[int]] = (set(), set())
        self._joined: set[int] = set()

    def reset(self, carried: Iterable[int] = ()) -> None:
        """Forget what belonged together: the tracks were reset, or both sides get one state.

        Args:
            carried: ids in the state that both sides were given; these must stay what they are.
        """
        self._partner = {int(number): int(number) for number in carried if number >= 0}
        self._taken = dict(self._partner)
        for exchanged in self._exchanged:
            exchanged.clear()

    def add(self, expected: FrameResult, got: FrameResult) -> None:
        """One frame: the graph's outputs by name, from the reference and from the candidate."""
        self.frames += 1
        for table in (expected, got):
            self.finite &= all(
                np.isfinite(value).all()
                for name, value in table.items()
                if value.dtype.kind == "f" and "." not in name
            )
        self._instances(expected, got)
        for name in sorted(expected.keys() & got.keys() & QUEUE_STATE):
            self._record(name, expected[name], got[name])

    def _instances(self, a: FrameResult, b: FrameResult) -> None:
        """Detections, and the carried instances where there are any."""
        limit = self.tolerance
        found = _detection_rows(a), _detection_rows(b)
        pairs = [match_rows(*found, limit.radius)]
        carried = None
        if "next_anchor" in a and "next_anchor" in b:
            carried = _state_rows(a), _state_rows(b)
            pairs.append(match_rows(*carried, limit.radius, None))
        tables = [found, *([carried] if carried else [])]
        noise = max(
            float(np.abs(x.score[m.first] - y.score[m.second]).max(initial=0.0))
            for (x, y), m in zip(tables, pairs, strict=True)
        )
        # A tie is a distance that the errors of this frame's matched rows explain.
        margin = min(2 * noise + 1e-6, limit.scores)
        self._joined = joined_ties(a, margin)
        if limit.exact:
            known = self._joined | self._exchanged[0]
            pairs = [match_strays(x, y, m, known) for (x, y), m in zip(tables, pairs, strict=True)]
        if carried:
            self._state(a, b, carried, pairs[1], margin)
        self._detections(a, b, found, pairs[0], margin)

    def _detections(
        self,
        a: FrameResult,
        b: FrameResult,
        rows: tuple[Rows, Rows],
        match: RowMatch,
        margin: float,
    ) -> None:
        left = match.left_over_first, match.left_over_second
        ties = detection_ties(a, rows[1], *left, self.tolerance.radius, margin)
        self._count(rows, left, ties or _at_the_end(rows, left, margin))
        i, j = match.first, match.second
        distance = box_distance(a["boxes"][i].astype(np.float64), b["boxes"][j].astype(np.float64))
        self.box_rows.append(distance)
        self._record("boxes", a["boxes"][i], b["boxes"][j], yaw_column=6)
        self._record("scores", a["scores"][i], b["scores"][j])
        other = a["labels"][i] != b["labels"][j]
        self.labels_wrong += int((other & sure_labels(a, i, margin)).sum())
        self._pair_ids(a["track_ids"][i], b["track_ids"][j])

    def _state(
        self,
        a: FrameResult,
        b: FrameResult,
        rows: tuple[Rows, Rows],
        match: RowMatch,
        margin: float,
    ) -> None:
        left = match.left_over_first, match.left_over_second
        ties = self._count(rows, left, _at_the_end(rows, left, margin))
        for side in (0, 1):
            # Carried by one program only: what becomes of the instance is the tie's doing.
            tied = {int(number) for number in rows[side].track_id[left[side][ties[side]]]}
            for number in tied - self._exchanged[side] - {-1}:
                self._exchanged[side].add(number)
                self._unpair(side, number)
        i, j = match.first, match.second
        for name in ("next_anchor", "next_feature", "next_confidence"):
            self._record(name, a[name][i], b[name][j])
        self._pair_ids(a["next_track_id"][i], b["next_track_id"][j])
        counter = "next_id_counter"
        self._record(counter, a[counter].astype(np.float64), b[counter].astype(np.float64))
        # Where every instance has an id, a frame hands out as many on both sides.
        if (a["next_track_id"] >= 0).all():
            self.counters_wrong += int((a[counter] != b[counter]).any())

    def _record(
        self, name: str, a: NDArray[Any], b: NDArray[Any], yaw_column: int | None = None
    ) -> None:
        error = np.abs(a.astype(np.float64) - b.astype(np.float64))
        if yaw_column is not None and error.size:
            turned = error[:, yaw_column] % (2 * np.pi)
            error[:, yaw_column] = np.minimum(turned, 2 * np.pi - turned)
        self.errors.setdefault(name, Errors()).add(a, b, error)

    def _count(
        self,
        rows: tuple[Rows, Rows],
        left: tuple[NDArray[Any], NDArray[Any]],
        ties: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Count rows without counterpart, ties apart; returns which rows are ties.

        `ties` are those of the list's own cut. Rows that an earlier cut exchanged are ties too.
        """
        self.rows += len(rows[0].score)
        result = []
        for side in (0, 1):
            exchanged = self._exchanged[side] | self._joined
            before = [int(number) in exchanged for number in rows[side].track_id[left[side]]]
            tied = ties[side] | np.array(before, dtype=bool)
            self.cut_ties += int(tied.sum())
            self.unmatched += int((~tied).sum())
            result.append(tied)
        return result[0], result[1]

    def _pair_ids(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        for left, right in zip(a.tolist(), b.tolist(), strict=True):
            known, taken = self._partner.get(left), self._taken.get(right)
            if known is None and taken is None:
                self._partner[left], self._taken[right] = right, left
            elif known != right or taken != left:
                self.ids["wrong"] += 1
                continue
            self.ids["equal" if left == right else "renamed"] += 1

    def _unpair(self, side: int, number: int) -> None:
        """Forget which id of the other program belonged to an id of this one."""
        own, other = (self._partner, self._taken) if side == 0 else (self._taken, self._partner)
        other.pop(own.pop(number, -1), None)

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
        furthest = float(boxes.max(initial=0.0))
        if furthest > limit.worst:
            reasons.append(f"a box is off by {furthest:.3g}, more than {limit.worst:g}")
        scores = tensors.get("scores", {"max": 0.0, "p99.9": 0.0})
        worst = scores["max"] if limit.exact else scores["p99.9"]
        if worst > limit.scores:
            reasons.append(f"scores are off by {worst:.3g}, more than {limit.scores:g}")
        if share > limit.unmatched:
            reasons.append(f"{self.unmatched} rows have no counterpart")
        signal = tensors.get("next_feature", {"relative": 0.0})["relative"]
        if signal > limit.signal:
            reasons.append(
                f"the carried features are off by {signal:.2g} of their norm, more than "
                f"{limit.signal:g}"
            )
        # Inexact programs pair some rows otherwise; these are as few as rows without counterpart.
        few = limit.unmatched * self.rows
        if self.ids["wrong"] > few:
            reasons.append(f"{self.ids['wrong']} track ids differ beyond ties")
        if self.labels_wrong > few:
            reasons.append(f"{self.labels_wrong} labels differ")
        if self.counters_wrong:
            reasons.append(f"the id counter is wrong in {self.counters_wrong} frames")
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
            "tolerance": {k: v for k, v in vars(limit).items() if v != np.inf},
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


def _at_the_end(
    rows: tuple[Rows, Rows], left: tuple[NDArray[Any], NDArray[Any]], margin: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows without counterpart are within `margin` of the other list's last score."""
    ends = [side.score.min(initial=np.inf) for side in rows]
    return (
        rows[0].score[left[0]] - ends[1] <= margin,
        rows[1].score[left[1]] - ends[0] <= margin,
    )
