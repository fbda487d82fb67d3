"""The merged metrics as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
TRACKING = ("amota", "amotp", "recall", "mota", "ids", "frag")


def metrics_table(merged: Mapping[str, Any]) -> str:
    """Summary line and one row per class for detection and tracking, as they are present."""
    parts = ["  ".join(f"{k} {_number(v)}" for k, v in merged["summary"].items())]
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
    for name, *values in rows:
        lines.append(f"{name:<22}" + "".join(f"{_number(v):>9}" for v in values))
    return "\n".join(lines)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
