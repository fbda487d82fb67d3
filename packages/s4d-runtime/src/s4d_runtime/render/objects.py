"""What is drawn: boxes with names, scores and ids, from detections or annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..frame import Detections
from ..nuscenes.classes import DETECTION_NAMES
from ..nuscenes.records import Annotations

__all__ = ["Objects"]


@dataclass(frozen=True)
class Objects:
    """Boxes to draw, in the LiDAR frame.

    Attributes:
        boxes: (K, 10) ``x y z w l h yaw vx vy vz`` as in ``Detections``; velocity may be NaN.
        names: (K,) class names for the labels.
        scores: (K,), or None where there are none (annotations).
        ids: (K,) track ids; they choose the colour. Negative: no id.
    """

    boxes: NDArray[np.float64]
    names: Sequence[str]
    scores: NDArray[np.float64] | None
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_detections(
        cls, detections: Detections, class_names: Sequence[str], min_score: float
    ) -> Objects:
        """The detections of at least ``min_score``."""
        kept = detections.above(min_score)
        return cls(
            kept.boxes.astype(np.float64),
            [class_names[i] for i in kept.labels],
            kept.scores.astype(np.float64),
            kept.track_ids,
        )

    @classmethod
    def from_annotations(cls, annotations: Annotations) -> Objects:
        """All annotated objects, by their class, or by category where they have none."""
        names = [
            DETECTION_NAMES[label] if label >= 0 else category.rpartition(".")[2]
            for label, category in zip(annotations.labels, annotations.categories, strict=True)
        ]
        return cls(annotations.boxes, names, None, annotations.track_ids)

    def label(self, index: int) -> str:
        """``car 0.83 #12``, without the parts that are not known."""
        parts = [self.names[index].replace("_", " ")]
        if self.scores is not None:
            parts.append(f"{self.scores[index]:.2f}")
        if self.ids[index] >= 0:
            parts.append(f"#{self.ids[index]}")
        return " ".join(parts)
