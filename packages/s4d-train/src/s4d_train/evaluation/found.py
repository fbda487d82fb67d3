"""Detections of many samples as a few arrays: written by each rank, read by the first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError

Array = npt.NDArray[Any]
FIELDS = ("boxes", "scores", "labels", "track_ids")


@dataclass
class Found:
    """Detections by sample token: boxes (K, 10), scores, labels and track ids (K,)."""

    samples: dict[str, tuple[Array, Array, Array, Array]] = field(default_factory=dict)

    def add(self, token: str, detections: Any) -> None:
        """Adds a sample; `detections` has the fields of s4d_core's or s4d_runtime's, or is None.

        Detections with a value that is not finite are left out.
        """
        if detections is None:
            columns = [np.zeros((0, 10)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)]
        else:
            columns = [_host(getattr(detections, name)) for name in FIELDS]
        fine = np.isfinite(columns[0]).all(axis=1) & np.isfinite(columns[1])
        boxes, scores, labels, ids = (column[fine] for column in columns)
        self.samples[token] = (boxes, scores, labels, ids)

    def save(self, file: Path) -> None:
        """One .npz file, written beside and renamed."""
        tokens = list(self.samples)
        parts = {
            name: np.concatenate([self.samples[t][i] for t in tokens])
            for i, name in enumerate(FIELDS)
            if tokens
        }
        counts = np.array([len(self.samples[t][1]) for t in tokens], dtype=np.int64)
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.savez(stream, tokens=np.array(tokens, dtype=str), counts=counts, **parts)
        os.replace(part, file)

    @classmethod
    def load(cls, files: Iterable[Path]) -> Found:
        """The samples of several files together."""
        found = cls()
        for file in files:
            try:
                with np.load(file, allow_pickle=False) as archive:
                    content = {name: archive[name] for name in archive.files}
            except (OSError, ValueError) as error:
                raise EvaluationError(f"cannot read the detections {file.name}: {error}.") from None
            ends = np.cumsum(content["counts"])
            for token, end, count in zip(content["tokens"], ends, content["counts"], strict=True):
                rows = slice(int(end - count), int(end))
                found.samples[str(token)] = tuple(content[name][rows] for name in FIELDS)  # type: ignore[assignment]
        return found


def _host(values: Any) -> Array:
    """A numpy array of a tensor or array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values)
