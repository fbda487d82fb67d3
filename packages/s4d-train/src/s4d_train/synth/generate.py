"""Write a synthetic data set in nuScenes layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..processes import in_processes
from .config import SynthConfig, SynthError
from .frames import CHUNK, FrameReport, render_part, stamp_of
from .records import tabulate, write_tables
from .rig import cameras
from .tables import Tables

__all__ = ["SynthConfig", "SynthError", "generate"]


def generate(
    out: str | Path, config: SynthConfig, workers: int | None = None, progress: bool = True
) -> Path:
    """Write the data set to the folder ``out``, which must not exist or be empty.

    The content is a function of ``config`` alone, whatever ``workers`` is (default: one process
    per core). Everything is written beside ``out`` and renamed at the end.
    """
    names = config.names()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SynthError(f"{out} exists and is not an empty folder; remove it or give another one")
    work = out.with_name(out.name + ".partial")
    if work.exists():
        shutil.rmtree(work)
    rig = cameras(*config.image_size)
    for folder in [c.name for c in rig] + ["LIDAR_TOP"]:
        (work / "samples" / folder).mkdir(parents=True)
    if config.sweeps:
        (work / "sweeps" / "LIDAR_TOP").mkdir(parents=True)

    tasks = [
        (config, str(work), name, first)
        for name in names
        for first in range(0, config.frames, CHUNK)
    ]
    frames: dict[str, list[FrameReport]] = {name: [] for name in names}
    total = len(names) * config.frames
    with tqdm(total=total, unit="frame", disable=not progress, desc="synth") as bar:
        for name, part in _run(tasks, workers):
            frames[name] += part
            bar.update(len(part))
    tables = Tables(config.seed, rig)
    for number, name in enumerate(names):
        ordered = sorted(frames[name], key=lambda f: f.index)
        tabulate(tables, config, name, stamp_of(number, 0), ordered)
    write_tables(work, config, tables)
    if out.exists():
        out.rmdir()
    os.replace(work, out)
    return out


def _run(tasks: list[Any], workers: int | None) -> Iterator[tuple[str, list[FrameReport]]]:
    count = min(workers or os.cpu_count() or 1, len(tasks))
    return in_processes(render_part, tasks, count)
