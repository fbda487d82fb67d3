"""Sparse convolution and voxels on the CPU: what is refused, and by which words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import make

from s4d_ops import InvalidInputError, sparse


def test_bad_input_is_named():
    sites = np.array([[0, 1, 1, 1], [0, 2, 2, 2], [0, 1, 1, 1]], np.int32)
    with pytest.raises(InvalidInputError, match="rows 0 and 2 are both"):
        sparse.submanifold_rulebook(sites, (4, 4, 4))
    for bad in ([0, 4, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [-1, 0, 0, 0]):
        with pytest.raises(InvalidInputError, match="outside"):
            sparse.strided_rulebook(np.array([bad], np.int32), (4, 4, 4))
    with pytest.raises(InvalidInputError, match="odd"):
        sparse.submanifold_rulebook(sites[:2], (4, 4, 4), 1, 2)
    with pytest.raises(InvalidInputError, match="integer"):
        sparse.submanifold_rulebook(sites.astype(float), (4, 4, 4))
    with pytest.raises(InvalidInputError, match="too many cells"):
        sparse.submanifold_rulebook(sites[:2], (2**31 - 1,) * 3)
    book = sparse.submanifold_rulebook(sites[:2], (4, 4, 4))
    weight = np.ones((2, 3, 3, 3, 5), np.float32)
    features = np.ones((2, 5), np.float32)
    with pytest.raises(InvalidInputError, match="shape"):
        sparse.convolution(features[:, :4], weight, book)
    with pytest.raises(InvalidInputError, match="entries"):
        sparse.convolution(features[:1], weight, book)
    with pytest.raises(InvalidInputError, match="float64"):
        sparse.convolution(features, weight.astype(np.float64), book)
    with pytest.raises(InvalidInputError, match="bias"):
        sparse.convolution(features, weight, book, np.ones(3, np.float32))
    with pytest.raises(InvalidInputError, match="activation"):
        sparse.convolution(features, weight, book, activation="gelu")
    with pytest.raises(InvalidInputError, match="-128"):
        sparse.PackedWeights(np.full((1, 27, 4), -128, np.int8), np.ones(1))
    with pytest.raises(InvalidInputError, match="range"):
        sparse.convolution(features, sparse.PackedWeights(weight.astype(np.int8), np.ones(2)), book)


def test_voxelize_names_what_it_refuses():
    points = np.array(
        [[0.1, 0.1, 0.1, 1], [5, 5, 5, 1], [0.2, 0.2, 0.2, 3], [np.nan, 0, 0, 1], [1.5, 0, 0, 7],
         [1.6, 0, 0, 9], [0.3, 0.3, 0.3, 5], [2.5, 0, 0, 1]],
        np.float32,
    )  # fmt: skip
    voxels = sparse.voxelize(points, (0, 0, 0), (4, 4, 4), (1, 1, 1), max_points=2, max_voxels=1)
    np.testing.assert_array_equal(voxels.cells, [[0, 0, 0]])
    np.testing.assert_array_equal(voxels.features[:, 3], [2.0])
    assert (voxels.kept[0], voxels.total[0]) == (2, 3)
    assert (voxels.refused_voxels, voxels.refused_points, voxels.outside_points) == (2, 3, 2)
    every = sparse.voxelize(points, (0, 0, 0), (4, 4, 4), (1, 1, 1))
    np.testing.assert_array_equal(every.indices("xyz", 3)[:, 0], [3, 3, 3])
    assert every.refused_voxels == 0 and len(every.cells) == 3
    assert len(sparse.voxelize(points[:0], (0, 0, 0), (4, 4, 4), (1, 1, 1)).cells) == 0
    with pytest.raises(InvalidInputError, match="voxel size"):
        sparse.voxelize(points, (0, 0, 0), (4, 4, 4), (1, 0, 1), (4, 4, 4))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    batch=st.integers(1, 3),
    count=st.integers(1, 60),
    twice=st.booleans(),
    data=st.data(),
)
def test_rows_twice_or_outside_are_errors_wherever_they_stand(
    seed, shape, batch, count, twice, data
):
    _, sites, features, _ = make(seed, shape, batch, count, 2, 2, (3, 3, 3))
    place = data.draw(st.integers(0, len(sites)))
    if twice:
        bad, message = sites[data.draw(st.integers(0, len(sites) - 1))], "both"
    else:
        axis = data.draw(st.integers(0, 3))
        bad, message = sites[0].copy(), "outside"
        size = (batch, *shape)[axis]
        bad[axis] = data.draw(st.sampled_from((-1, -(2**31), size, size + 1, 2**31 - 1)))
    rows = np.insert(sites, place, bad, 0)
    values = np.insert(features, 0, 0.0, 0)
    for refused in (
        lambda: sparse.submanifold_rulebook(rows, shape, batch),
        lambda: sparse.strided_rulebook(rows, shape, batch, 3, 2, 1),
        lambda: sparse.scatter_dense(values, rows, shape, batch),
    ):
        with pytest.raises(InvalidInputError, match=message):
            refused()
