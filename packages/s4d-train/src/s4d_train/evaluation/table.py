"""The merged metrics as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
TRACKING = ("amota", "amotp", "recall", "mota", "ids", "frag")
COUNTS = ("ids", "frag")


def metrics_table(merged: Mapping[str, Any]) -> str:
    """Summary line and one row per class for detection and tracking, as they are present."""
    parts = [
        "  ".join(f"{k} {_number(v, k.lower() in COUNTS)}" for k, v in merged["summary"].items())
    ]
    if "detection" in merged:
        found = merged["detection"]
        rows = [
            [name, ap, *(found["label_tp_errors"][name][error] for error in ERRORS)]
            for name, ap in found["mean_dist_aps"].items()
        ]
        parts.append(_table(["detection", "AP", "ATE", "ASE", "AOE", "AVE", "AAE"], rows))
    if "tracking" in merged:
        found = merged["tracking"]["label_metrics"]
        names = sorted({name for metric in found.values() for name in metric})
        rows = [[name, *(found[m].get(name) for m in TRACKING)] for name in names]
        parts.append(_table(["tracking", *(m.upper() for m in TRACKING)], rows))
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"{head[0]:<22}" + "".join(f"{h:>9}" for h in head[1:])]
    counts = [column.lower() in COUNTS for column in head[1:]]
    for name, *values in rows:
        texts = [_number(v, count) for v, count in zip(values, counts, strict=True)]
        lines.append(f"{name:<22}" + "".join(f"{text:>9}" for text in texts))
    return "\n".join(lines)


def _number(value: Any, count: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.{0 if count else 4}f}" if isinstance(value, float) else str(value)
