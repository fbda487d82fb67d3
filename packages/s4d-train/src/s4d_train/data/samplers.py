"""Which samples make which batch. A batch is a pure function of (seed, step).

Training walks many sequences side by side (REFERENCE A3.8): slot i of the global batch takes the
sequences at positions i, i + G, i + 2 G, ... of an endless shuffled list, G being the global batch
size, and goes through each frame by frame. Because every random choice is a function of the seed
and that position, the state of the sampler is one number, the step; it is the same on all ranks and
survives another number of ranks with the same global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from s4d_train.errors import ConfigError, DataError

from .index import DriveIndex

__all__ = ["Draw", "EvaluationSampler", "SequenceSampler", "scene_rows", "sequence_rows"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One item to load."""

    row: int
    """Row of the index."""
    start: bool
    """First frame of a walk: the state of its slot is to be reset."""
    visit: int = -1
    """Number of the walk through a sequence, which seeds its augmentation; -1 = no augmentation."""
    step: int = 0
    """Number of the frame within the walk, which seeds what differs from frame to frame."""
    padding: bool = False
    """Repeats a frame only to fill the batch; its token is returned as ""."""


def scene_rows(index: DriveIndex, split: str | None) -> list[Rows]:
    """Rows of every scene of a split, in time: one int64 array a scene; None is every scene."""
    rows = index.samples(split)
    if not len(rows):
        return []
    scenes = index.scene[rows]
    return [part.copy() for part in np.split(rows, np.flatnonzero(np.diff(scenes)) + 1)]


def sequence_rows(index: DriveIndex, split: str | None, parts: int) -> list[Rows]:
    """Training sequences: every scene cut into ``parts`` nearly equal pieces, 0 = single frames.

    Returns:
        one array of rows a sequence, as ``SequenceSampler`` takes them.
    """
    pieces: list[Rows] = []
    for rows in scene_rows(index, split):
        count = len(rows) if parts == 0 else min(parts, len(rows))
        pieces += np.array_split(rows, count)
    return pieces


class SequenceSampler(Sampler[list[Draw]]):
    """Endless batch sampler of training.

    Args:
        sequences: rows of each sequence, in time.
        batch_size: slots of this rank.
        rank, world_size: this process among all.
        seed: same on all ranks.
        skip_probability: chance, before every frame but a sequence's last, that it is left out.
        reverse_probability: chance that a sequence is walked backwards.
    """

    def __init__(
        self,
        sequences: Sequence[Rows],
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        skip_probability: float = 0.5,
        reverse_probability: float = 0.1,
    ) -> None:
        if not sequences:
            raise DataError("there is no training sequence; check the split's name and the index")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"expected a batch of at least 1 and a rank below {world_size}, got {batch_size} "
                f"and {rank}"
            )
        self.sequences = list(sequences)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed = seed
        self.skip_probability = skip_probability
        self.reverse_probability = reverse_probability
        self.step = 0
        """The next batch that iteration gives."""

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """The state after ``consumed`` batches.

        Give the number that training has used: workers fetch ahead, so the sampler itself has
        gone further. Without it the sampler's own position is taken.
        """
        return {
            "step": self.step if consumed is None else consumed,
            "seed": self.seed,
            "global_batch": self.global_batch,
            "sequences": len(self.sequences),
            "frames": int(sum(len(s) for s in self.sequences)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; ConfigError when data, seed or batch differ."""
        mine = self.state_dict()
        for key in ("seed", "global_batch", "sequences", "frames"):
            if state.get(key) != mine[key]:
                raise ConfigError(
                    f"cannot resume: the sampler's {key} was {state.get(key)}, now it is "
                    f"{mine[key]}; use the settings and data of the interrupted run"
                )
        self.step = int(state["step"])

    def walk(self, visit: int) -> Rows:
        """Rows of the ``visit``-th sequence of the endless list, after reversal and skips."""
        epoch, place = divmod(visit, len(self.sequences))
        order = np.random.default_rng([self.seed, 11, epoch]).permutation(len(self.sequences))
        return self._frames(int(order[place]), visit)

    def _frames(self, sequence: int, visit: int) -> Rows:
        rng = np.random.default_rng([self.seed, 12, visit])
        rows = self.sequences[sequence]
        if rng.random() < self.reverse_probability:
            rows = rows[::-1]
        kept, at = [], 0
        while at < len(rows):
            # One frame at most is left out before each that is taken, never the last one.
            if at < len(rows) - 1 and rng.random() < self.skip_probability:
                at += 1
            kept.append(rows[at])
            at += 1
        return np.array(kept, dtype=np.int64)

    def _slot(self, slot: int, first: int) -> Iterator[Draw]:
        """Frames of one slot of the global batch from step ``first`` on."""
        visit, passed = slot, 0
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        while True:
            wanted, place = divmod(visit, len(self.sequences))
            if wanted != epoch:
                epoch = wanted
                rng = np.random.default_rng([self.seed, 11, epoch])
                order = rng.permutation(len(self.sequences))
            rows = self._frames(int(order[place]), visit)
            for step in range(max(0, first - passed), len(rows)):
                yield Draw(int(rows[step]), step == 0, visit, step)
            passed += len(rows)
            visit += self.global_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.rank * self.batch_size
        slots = [self._slot(first + i, self.step) for i in range(self.batch_size)]
        while True:
            self.step += 1
            yield [next(slot) for slot in slots]


class EvaluationSampler(Sampler[list[Draw]]):
    """Every frame once, scenes whole and in time, spread over ranks and slots.

    Scenes go, longest first, to the slot that has least to do, so all ranks end together. A slot
    that is done repeats its last frame as padding until its rank is done.
    """

    def __init__(
        self, scenes: Sequence[Rows], batch_size: int = 1, *, rank: int = 0, world_size: int = 1
    ) -> None:
        total = batch_size * world_size
        lanes: list[list[Rows]] = [[] for _ in range(total)]
        load = [0] * total
        for scene in sorted(scenes, key=lambda rows: (-len(rows), int(rows[0]))):
            lane = load.index(min(load))
            lanes[lane].append(scene)
            load[lane] += len(scene)
        # Lane k belongs to rank k modulo the ranks: a few scenes still occupy all ranks.
        self._lanes = [lane for lane in lanes[rank::world_size] if lane]

    def __len__(self) -> int:
        return max((sum(map(len, lane)) for lane in self._lanes), default=0)

    def __iter__(self) -> Iterator[list[Draw]]:
        streams = [
            [Draw(int(row), k == 0, step=k) for rows in lane for k, row in enumerate(rows)]
            for lane in self._lanes
        ]
        for at in range(len(self)):
            yield [
                stream[at]
                if at < len(stream)
                else Draw(stream[-1].row, False, step=stream[-1].step, padding=True)
                for stream in streams
            ]
