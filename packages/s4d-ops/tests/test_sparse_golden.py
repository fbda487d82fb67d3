"""The golden LiDAR data: every layer of the small net, the real cloud, voxelisation."""

import numpy as np
import pytest
from golden_lidar import data_file, golden, golden_rules, real_points

from s4d_ops import sparse


def read_tensor(name: str) -> np.ndarray:
    """A tensor file: magic, number of dimensions, type code, dimensions, data."""
    raw = data_file(name).read_bytes()
    magic, rank, code = np.frombuffer(raw[:12], np.int32)
    assert magic == 0x33FF1101
    shape = np.frombuffer(raw[12 : 12 + 4 * rank], np.int32)
    return np.frombuffer(raw[12 + 4 * rank :], {1: np.int32, 2: np.float16}[int(code)]).reshape(
        shape
    )


def run_network(indices, features, grid, batch, widths, dtype, visit):
    """The golden network with folded weights; visit(conv, role, indices, features, rulebook)."""
    rules = golden_rules()
    weights = rules.state_dict(widths, features.shape[1])
    x, rows, shape, books = features.astype(dtype), indices, tuple(grid), {}
    block = None
    for conv, bn, _, _, kernel, stride, padding, subm, key, _, role in rules.layers(
        widths, features.shape[1]
    ):
        weight, bias = rules.fold(weights, conv, bn)
        if dtype == np.float16:
            weight = weight.astype(np.float16)
        elif dtype == np.float32:
            weight = weight.astype(np.float32)
        if not subm:
            book = sparse.strided_rulebook(rows, shape, batch, kernel, stride, padding)
            rows, shape = book.out_indices, book.out_shape
        elif key in books:
            book = books[key]
        else:
            book = books[key] = sparse.submanifold_rulebook(rows, shape, batch, kernel)
        if role == "block1":
            block = x
        x = sparse.convolution(
            x, weight, book, bias, activation="relu",
            residual=block if role == "block2" else None,
        )  # fmt: skip
        visit(conv[:-6] if role == "block2" else conv, rows, x, book, conv)
    return rows, x, shape


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_small_network_every_layer(dtype, tolerance):
    data, rules = golden("golden_scn_small.npz"), golden_rules()
    compared = []

    def visit(name, rows, x, book, conv):
        order = rules.sort_rows(rows)
        stage = (
            "extra"
            if name.startswith("extra")
            else f"stage{name[4]}"
            if name[4] != "_"
            else "stage1"
        )
        np.testing.assert_array_equal(rows[order], data[f"idx/{stage}"])
        if f"pairs/{conv}" in data:
            np.testing.assert_array_equal(book.pairs(), data[f"pairs/{conv}"])
        if f"feat/{name}" not in data:
            return
        want = data[f"feat/{name}"]
        limit = tolerance if want.dtype == np.float64 or dtype != np.float64 else 3e-7
        limit *= np.abs(want).max() if dtype == np.float32 else max(1.0, np.abs(want).max())
        assert np.abs(x[order] - want).max() <= limit, name
        got = rules.checksum(x)
        np.testing.assert_allclose(got, data[f"checksum/{name}"], rtol=100 * tolerance)
        compared.append(name)

    rows, x, shape = run_network(
        data["in/idx"], data["in/feat"], data["in/grid"], 2, (4, 8, 16, 32), dtype, visit
    )
    assert len(compared) == 21
    dense = sparse.scatter_dense(x, rows, shape, 2)
    assert np.abs(dense - data["dense"]).max() <= 5e-6 * np.abs(data["dense"]).max()


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-5), (np.float16, 3e-3)])
def test_real_cloud(dtype, limit):
    data, rules = golden("golden_scn_real.npz"), golden_rules()
    indices = read_tensor("centerpoint-voxels.indices-zyx.int32.tensor")
    features = read_tensor("centerpoint-voxels.features.fp16.tensor")
    names = {"conv_input.0": 1, "conv2.0": 2, "conv3.0": 3, "conv4.0": 4}

    def visit(name, rows, x, book, conv):
        stage = names.get(name, "extra" if name.startswith("extra") else None)
        if stage is not None:
            key = f"stage{stage}" if stage != "extra" else stage
            assert len(rows) == data[f"{key}/num"]
            assert book.out_shape == tuple(data[f"{key}/shape"])
            d, h, w = (int(n) for n in data[f"{key}/shape"])
            keys = ((rows[:, 0].astype(np.int64) * d + rows[:, 1]) * h + rows[:, 2]) * w + rows[
                :, 3
            ]
            mixed = (keys.astype(object) * 2654435761) % 2**61
            total = np.bitwise_xor.reduce(mixed.astype(np.int64))
            want = data[f"{key}/key_checksum"]
            assert [len(keys), keys.sum(), (keys % 1000003).sum(), total] == want.tolist()
        work = dict(zip(data["work/name"], data["work/pairs"], strict=True))
        assert book.pairs().sum() == work[conv]
        if f"rows/{name}/feat" in data:
            order = rules.sort_rows(rows)
            picked, want = data[f"rows/{name}/idx"], data[f"rows/{name}/feat"]
            lookup = {tuple(row): i for i, row in enumerate(rows[order].tolist())}
            got = x[order][[lookup[tuple(row)] for row in picked.tolist()]]
            error = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
            assert error <= limit, name

    rows, x, shape = run_network(
        indices, features, (41, 1440, 1440), 1, (16, 32, 64, 128), dtype, visit
    )
    np.testing.assert_array_equal(rows[:, 1:], data["final/idx"])
    want = data["final/feat_fp16"].astype(np.float64)
    # The stored rows are rounded to half, which alone is 2e-4; their exact sums are beside them.
    got = x.astype(np.float64)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) <= max(limit, 3e-4)
    sums = got.sum(1) - data["final/rowsum"]
    assert np.linalg.norm(sums) / np.linalg.norm(data["final/rowsum"]) <= limit
    squares = (got**2).sum(1) - data["final/rowsq"]
    assert np.linalg.norm(squares) / np.linalg.norm(data["final/rowsq"]) <= 2 * limit
    dense = sparse.scatter_dense(x, rows, shape)
    np.testing.assert_array_equal(dense.shape, data["dense/shape"])
    occupied = np.packbits((dense != 0).any((0, 1)))
    if dtype == np.float32:
        np.testing.assert_array_equal(occupied, data["dense/occupied_hw"])


@pytest.mark.parametrize("part", ["main", "cap"])
def test_voxelize_real_cloud(part):
    data, rules = golden("golden_voxelize.npz"), golden_rules()
    limits = rules.VOX
    max_points, max_voxels = (int(n) for n in data[f"{part}/params"])
    points = real_points().astype(np.float32)
    voxels = sparse.voxelize(
        points, limits["low"], limits["high"], limits["size"], limits["grid"],
        max_points=max_points, max_voxels=max_voxels,
    )  # fmt: skip
    count = int(data[f"{part}/n_voxels"])
    assert len(voxels.cells) == count == (105086 if part == "main" else 40000)
    assert count + voxels.refused_voxels == data[f"{part}/n_voxels_uncapped"]
    assert len(points) - voxels.outside_points == data[f"{part}/n_points_inside"]
    assert voxels.total.sum() == data[f"{part}/n_points_in_kept_voxels"]
    assert voxels.kept.sum() == data[f"{part}/n_points_used"]
    cells = voxels.cells.astype(np.int64)
    keys = (cells[:, 2] * 1440 + cells[:, 1]) * 1440 + cells[:, 0]
    order = np.argsort(keys)
    if part == "main":
        np.testing.assert_array_equal(keys[order], data["main/sorted_keys"])
        np.testing.assert_array_equal(voxels.kept[order], data["main/sorted_counts"])
        np.testing.assert_array_equal(voxels.total[order], data["main/sorted_total"])
    rows = order[data[f"{part}/rows"]]
    np.testing.assert_array_equal(voxels.features[rows], data[f"{part}/mean_rows"])


def test_voxelize_edges():
    data, rules = golden("golden_voxelize.npz"), golden_rules()
    limits = rules.VOX
    for point, inside, cell in zip(
        data["edge/points"], data["edge/inside"], data["edge/cell_xyz"], strict=True
    ):
        voxels = sparse.voxelize(
            point[None], limits["low"], limits["high"], limits["size"], limits["grid"]
        )
        assert len(voxels.cells) == int(inside)
        if inside:
            np.testing.assert_array_equal(voxels.cells[0], cell)
