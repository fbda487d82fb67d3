"""Latencies and counters of a pipeline, cheap enough to be always on."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ResultsError

__all__ = ["JsonLogFormatter", "Stats", "StopWatch", "log_to_file"]

STAGES = ("check", "prepare", "infer", "finish", "total")


class StopWatch:
    """Splits one frame's time into stages."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self.milliseconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Time since the last lap belongs to ``stage``."""
        now = time.perf_counter()
        self.milliseconds[stage] = (now - self._last) * 1e3
        self.milliseconds["total"] = (now - self._start) * 1e3
        self._last = now


class Stats:
    """Counters since the start, and the latencies of the last ``window`` frames.

    ``counters`` counts ``frames`` (answered), ``first``, ``reset``, ``skipped``, ``refused``, and
    each cause as ``cause.NAME``.
    """

    def __init__(self, window: int = 4096) -> None:
        self.counters: Counter[str] = Counter()
        self._window = window
        # Filled, not only reserved: memory that is touched later would look like a leak.
        self._rings = {stage: np.full(window, 0.0) for stage in STAGES}
        self._maxima = dict.fromkeys(STAGES, 0.0)
        self._sums = dict.fromkeys(STAGES, 0.0)

    def record(self, milliseconds: dict[str, float]) -> None:
        """Add one answered frame."""
        index = self.counters["frames"] % len(self._rings["total"])
        for stage, value in milliseconds.items():
            if stage not in self._rings:  # a device's own stages come with its first frame
                self._rings[stage] = np.full(self._window, 0.0)
                self._maxima[stage] = self._sums[stage] = 0.0
            self._rings[stage][index] = value
            self._sums[stage] += value
            self._maxima[stage] = max(self._maxima[stage], value)
        self.counters["frames"] += 1

    def latency(self) -> dict[str, dict[str, float]]:
        """Per stage, milliseconds: ``p50``, ``p90``, ``p99``, ``p999`` of the window, ``mean`` and
        ``max`` since the start. Empty before the first frame."""
        count = min(self.counters["frames"], len(self._rings["total"]))
        if count == 0:
            return {}
        result = {}
        for stage, ring in self._rings.items():
            p50, p90, p99, p999 = np.percentile(ring[:count], (50, 90, 99, 99.9)).tolist()
            mean = self._sums[stage] / self.counters["frames"]
            peak = self._maxima[stage]
            result[stage] = {
                **{"p50": p50, "p90": p90, "p99": p99, "p999": p999},
                **{"mean": mean, "max": peak},
            }
        return result

    def snapshot(self) -> dict[str, Any]:
        """``counters`` and ``latency_ms``, ready for JSON."""
        return {"counters": dict(self.counters), "latency_ms": self.latency()}

    def prometheus(self, prefix: str = "s4d") -> str:
        """Counters and latencies in Prometheus' text format, for a user's own endpoint."""
        lines = [
            f"# HELP {prefix}_events_total Frames and what happened to them.",
            f"# TYPE {prefix}_events_total counter",
        ]
        for name, count in sorted(self.counters.items()):
            lines.append(f'{prefix}_events_total{{event="{name}"}} {count}')
        lines.append(f"# HELP {prefix}_latency_seconds Time per frame and stage.")
        lines.append(f"# TYPE {prefix}_latency_seconds summary")
        for stage, values in self.latency().items():
            for key, quantile in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
                label = f'stage="{stage}",quantile="{quantile}"'
                lines.append(f"{prefix}_latency_seconds{{{label}}} {values[key] / 1e3:.9f}")
            total = self._sums[stage] / 1e3
            lines.append(f'{prefix}_latency_seconds_sum{{stage="{stage}"}} {total:.9f}')
            frames = self.counters["frames"]
            lines.append(f'{prefix}_latency_seconds_count{{stage="{stage}"}} {frames}')
        return "\n".join(lines) + "\n"


class JsonLogFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and the pipeline's ``s4d`` fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update(getattr(record, "s4d", {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def log_to_file(path: Path) -> None:
    """Append what the runtime logs (frames refused, resets) to a file of JSON lines.

    Raises:
        ResultsError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write the log {str(path)!r}: {error.strerror}") from None
    handler.setFormatter(JsonLogFormatter())
    logger = logging.getLogger("s4d_runtime")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
