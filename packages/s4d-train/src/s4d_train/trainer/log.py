"""What a run says about itself: JSON lines, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

LOG_FILE = "log.jsonl"


class RunLog:
    """Log of the first rank; the others have none.

    Args:
        folder: output folder of the run.
        total: steps of the whole run.
        start: steps that were done before; later lines of an earlier attempt are removed.
        show: whether to draw the progress bar.
    """

    def __init__(self, folder: Path, total: int, start: int, show: bool = True) -> None:
        self.file = folder / LOG_FILE
        _cut(self.file, start)
        self._lines = self.file.open("a")
        self._board = _summary_writer(folder / "tensorboard", start)
        self.bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            disable=not show,
            file=sys.stderr,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line with the figures of a step, also into TensorBoard."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        if self._board is not None:
            for name, value in values.items():
                group = "loss" if name.startswith("loss") else "run"
                self._board.add_scalar(f"{group}/{name}", value, step)

    def show(self, values: Mapping[str, str]) -> None:
        """Figures beside the progress bar."""
        self.bar.set_postfix(values, refresh=False)

    def advance(self) -> None:
        """One step is done."""
        self.bar.update()

    def warn(self, message: str) -> None:
        """A line of its own above the progress bar."""
        self.bar.write(f"warning: {message}", file=sys.stderr)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        self._lines.close()
        if self._board is not None:
            self._board.close()


def _summary_writer(folder: Path, start: int) -> Any:
    """A TensorBoard writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start)


def _cut(file: Path, start: int) -> None:
    """Removes the lines after step `start`, and a last line that a kill cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    part = file.with_suffix(".part")
    part.write_text("".join(line + "\n" for line in kept))
    os.replace(part, file)
