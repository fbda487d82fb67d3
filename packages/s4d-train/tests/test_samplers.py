"""Batches as a pure function of (seed, step): order, resume, ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s4d_train.data.index import DriveIndex
from s4d_train.data.samplers import (
    Draw,
    EvaluationSampler,
    SequenceSampler,
    scene_rows,
    sequence_rows,
)
from s4d_train.errors import ConfigError, DataError

lengths = st.lists(st.integers(1, 7), min_size=1, max_size=9)


def _sequences(counts: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(counts)
    return [np.arange(end - n, end) for n, end in zip(counts, ends, strict=True)]


def _take(sampler: SequenceSampler, count: int) -> list[list[Draw]]:
    return list(itertools.islice(sampler, count))


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 4), st.integers(0, 30), st.integers(0, 5))
def test_resume_gives_the_same_batches(counts: list[int], batch: int, stop: int, seed: int) -> None:
    whole = _take(SequenceSampler(_sequences(counts), batch, seed=seed), stop + 12)
    first = SequenceSampler(_sequences(counts), batch, seed=seed)
    _take(first, stop + 3)  # workers have fetched three batches ahead
    state = first.state_dict(consumed=stop)
    later = SequenceSampler(_sequences(counts), batch, seed=seed)
    later.load_state_dict(state)
    assert _take(later, 12) == whole[stop:]


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_ranks_share_one_global_batch(counts: list[int], batch: int, world: int, seed: int) -> None:
    one = _take(SequenceSampler(_sequences(counts), batch * world, seed=seed), 20)
    parts = [
        _take(SequenceSampler(_sequences(counts), batch, rank=r, world_size=world, seed=seed), 20)
        for r in range(world)
    ]
    for step in range(20):
        assert [d for part in parts for d in part[step]] == one[step]


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 3), st.integers(0, 5))
def test_walks_keep_order_and_drop_at_most_single_frames(
    counts: list[int], batch: int, seed: int
) -> None:
    sequences = _sequences(counts)
    owner = {int(r): k for k, rows in enumerate(sequences) for r in rows}
    for slot in range(batch):
        draws = [b[slot] for b in _take(SequenceSampler(sequences, batch, seed=seed), 40)]
        assert draws[0].start
        for before, after in itertools.pairwise(draws):
            if after.start:
                assert after.step == 0 and after.visit == before.visit + batch
                continue
            assert after.visit == before.visit and after.step == before.step + 1
            assert owner[after.row] == owner[before.row]
            assert 1 <= abs(after.row - before.row) <= 2
        walks = [list(g) for _, g in itertools.groupby(draws, key=lambda d: d.visit)]
        for walk in walks:
            steps = np.diff([d.row for d in walk])
            assert (steps > 0).all() or (steps < 0).all() or not len(steps)


def test_every_sequence_is_visited_once_per_epoch() -> None:
    sequences = _sequences([3, 1, 4, 2, 5])
    sampler = SequenceSampler(sequences, 1, seed=3)
    for epoch in range(4):
        seen = set()
        for k in range(5):
            row = int(sampler.walk(epoch * 5 + k)[0])
            seen.add(next(i for i, rows in enumerate(sequences) if row in rows))
        assert seen == set(range(5))


def test_skip_and_reverse_rates() -> None:
    sampler = SequenceSampler(_sequences([20]), 1, skip_probability=0.5, reverse_probability=0.1)
    walks = [sampler.walk(k) for k in range(400)]
    reverse = np.mean([w[0] > w[-1] for w in walks])
    assert 0.06 < reverse < 0.15
    assert 12.5 < np.mean([len(w) for w in walks]) < 14.5  # 20 / 1.5
    plain = SequenceSampler(_sequences([20]), 1, skip_probability=0.0, reverse_probability=0.0)
    assert plain.walk(7).tolist() == list(range(20))


def test_resume_of_another_run_is_refused() -> None:
    state = SequenceSampler(_sequences([4, 4]), 2, seed=1).state_dict()
    with pytest.raises(ConfigError, match="global_batch was 2, now it is 3"):
        SequenceSampler(_sequences([4, 4]), 3, seed=1).load_state_dict(state)
    with pytest.raises(ConfigError, match="seed"):
        SequenceSampler(_sequences([4, 4]), 2, seed=2).load_state_dict(state)
    with pytest.raises(DataError, match="no training sequence"):
        SequenceSampler([], 2)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 3), st.integers(1, 4))
def test_evaluation_takes_every_frame_once(counts: list[int], batch: int, world: int) -> None:
    scenes = _sequences(counts)
    rows = []
    for rank in range(world):
        sampler = EvaluationSampler(scenes, batch, rank=rank, world_size=world)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert len({len(b) for b in batches}) <= 1  # slots are stable
        for slot in range(len(batches[0]) if batches else 0):
            draws = [b[slot] for b in batches]
            live = [d for d in draws if not d.padding]
            assert live == draws[: len(live)]
            for before, after in itertools.pairwise(live):
                assert after.start or after.row == before.row + 1
            rows += [d.row for d in live]
    assert sorted(rows) == list(range(sum(counts)))


def test_sequences_of_an_index(synth_index: DriveIndex) -> None:
    assert [len(r) for r in scene_rows(synth_index, None)] == [6, 6]
    assert [len(r) for r in sequence_rows(synth_index, "mini_train", 2)] == [3, 3]
    assert [len(r) for r in sequence_rows(synth_index, "mini_train", 4)] == [2, 2, 1, 1]
    assert [len(r) for r in sequence_rows(synth_index, "mini_train", 0)] == [1] * 6
