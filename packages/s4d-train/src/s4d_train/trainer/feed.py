"""Batches of training, from a converted index through worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..configs.config import FitConfig
from ..data import DriveDataset, DriveIndex, SequenceSampler, collate, sequence_rows
from ..data.batch import Batch
from ..data.loading import plain_errors
from ..errors import ConfigError, MissingFileError
from .ranks import Ranks


class Feed:
    """Endless training batches of one rank, from any step on.

    Raises:
        ConfigError: no index was given, or there is less data than one step needs.
        DataError: index, split, cameras or classes do not fit.
    """

    def __init__(self, config: FitConfig, ranks: Ranks) -> None:
        data, run = config.data, config.run
        if not data.index:
            raise ConfigError(
                "setting 'data.index' is empty; give the folder of 's4d-train convert' with "
                "--set data.index=FOLDER."
            )
        index = DriveIndex.open(data.index)
        sequences = sequence_rows(index, config.split, data.sequence_parts)
        self.samples = sum(len(rows) for rows in sequences)
        self.total_batch = run.batch * ranks.world
        if self.samples < 1 or (self.samples < self.total_batch and run.steps == 0):
            raise ConfigError(
                f"split '{config.split}' has {self.samples} samples, one step takes "
                f"{self.total_batch}; use a smaller run.batch, or give the length in run.steps."
            )
        dataset = DriveDataset(data, index, seed=run.seed, with_depth=config.loss.depth > 0)
        if ranks.first:
            root = Path(data.root or index.root)
            _check_files(index, np.concatenate(sequences), root, bool(dataset.with_depth))
        self.sampler = SequenceSampler(
            sequences,
            run.batch,
            rank=ranks.rank,
            world_size=ranks.world,
            seed=run.seed,
            skip_probability=data.skip_probability,
            reverse_probability=data.reverse_probability,
        )
        options: dict[str, Any] = {}
        if run.workers > 0:
            options = {"persistent_workers": True, "prefetch_factor": 4}
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=run.workers,
            collate_fn=collate,
            pin_memory=ranks.device.type == "cuda",
            # Its own generator: starting the workers must not use up the run's random numbers.
            generator=torch.Generator().manual_seed(run.seed),
            **options,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see as many samples as the split has."""
        return max(1, self.samples // self.total_batch)

    def batches(self) -> Iterator[Batch]:
        """Batches from the sampler's present step on."""
        return plain_errors(iter(self.loader))


def _check_files(index: DriveIndex, rows: np.ndarray, root: Path, with_lidar: bool) -> None:
    """MissingFileError where a file that training will read is not there."""
    names = index.camera_file[rows].ravel().tolist()
    if with_lidar:
        names += index.lidar_file[rows].tolist()
    wanted: dict[str, list[str]] = {}
    for name in names:
        folder, _, file = name.decode().rpartition("/")
        wanted.setdefault(folder, []).append(file)
    for folder, files in wanted.items():
        place = root / folder
        present = set(os.listdir(place)) if place.is_dir() else set()
        missing = [file for file in files if file not in present]
        if missing:
            raise MissingFileError(
                f"{place} lacks {len(missing)} files that training reads, first {missing[0]}; "
                "complete the data set, or give its folder with --set data.root=FOLDER."
            )
