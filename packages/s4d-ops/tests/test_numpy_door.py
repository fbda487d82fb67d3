"""The numpy door: the same cases, without torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, GOLDEN, error, forward, golden_case

from s4d_ops import InvalidInputError
from s4d_ops.numpy import deformable_aggregation

LIMIT = {np.float64: 1e-12, np.float32: 1e-6, np.float16: 2e-3}


@pytest.mark.skipif(not GOLDEN.exists(), reason="no shared golden data")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_golden(variant, dtype):
    case, expected = golden_case(variant)
    out = deformable_aggregation(*case.cast(dtype).inputs)
    assert out.dtype == dtype
    assert error(out, expected["out"]) <= LIMIT[dtype]


@pytest.mark.parametrize("dtype", list(LIMIT))
@pytest.mark.parametrize("name", list(CASES))
def test_table(name, dtype):
    case = CASES[name].cast(dtype, np.int32)
    out = deformable_aggregation(*case.inputs)
    assert out.dtype == dtype
    assert error(out, forward(case)) <= LIMIT[dtype]


def test_strided_arrays_and_threads():
    case = CASES["model_width"]
    strided = [np.stack([v, v], -1)[..., 0] for v in case.inputs]
    one = deformable_aggregation(*strided, threads=1)
    for threads in (2, 5):
        assert np.array_equal(one, deformable_aggregation(*case.inputs, threads=threads))


def test_a_forked_process_has_threads_of_its_own():
    import multiprocessing

    case = CASES["model_width"]
    here = deformable_aggregation(*case.inputs, threads=2)  # the pool exists before the fork
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply_async(_run, (case,)).get(timeout=60)
    assert np.array_equal(here, there)


def _run(case):
    return deformable_aggregation(*case.inputs, threads=2)


def test_callers_at_once():
    from concurrent.futures import ThreadPoolExecutor

    case = CASES["model_width"]
    expected = deformable_aggregation(*case.inputs)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: _run(case), range(20)):
            assert np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: replace(c, features=c.features[0]), "features"),
        (lambda c: replace(c, features=c.features.astype(np.int32)), "float"),
        (lambda c: replace(c, features=c.features.astype(complex)), "complex"),
        (lambda c: replace(c, features=c.features.astype(np.float64)), "float64"),
        (lambda c: replace(c, spatial_shapes=c.spatial_shapes[..., :1]), "spatial_shapes"),
        (lambda c: replace(c, level_start_index=c.level_start_index[:1]), "level_start_index"),
        (lambda c: replace(c, level_start_index=c.level_start_index - 1), "does not lie inside"),
        (lambda c: replace(c, spatial_shapes=c.spatial_shapes * 2**33), "does not lie inside"),
        (lambda c: replace(c, locations=c.locations[..., :1]), "sampling_locations"),
        (lambda c: replace(c, weights=c.weights[:, :1]), "weights"),
        (lambda c: replace(c, weights=c.weights[..., :0]), "groups"),
    ],
)
def test_wrong_input_is_named(change, words):
    with pytest.raises(InvalidInputError, match=words):
        deformable_aggregation(*change(CASES["small"]).inputs)
