"""Times and memory of the sparse engine on CUDA: CenterPoint's encoder with random weights.

    python benchmarks/lidar_cuda.py VOXELS.tensor [--points CLOUD.bin] [--profile]

VOXELS.tensor: index rows (V, 4) int32 batch z y x of a real frame, grid 41 x 1440 x 1440. Times are
medians of 100 frames, inputs and output on the device: rulebooks, network and dense map.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import Any

import numpy as np

from s4d_runtime.cuda.driver import Event
from s4d_runtime.lidar import SparseEngine, VoxelRules, read_tensor
from s4d_runtime.lidar.nodes import (
    AddNode,
    ConvNode,
    LidarGraph,
    Node,
    ReluNode,
    ReshapeNode,
    ScatterNode,
)

GRID = (41, 1440, 1440)
WIDTHS = (16, 32, 64, 128)


def centerpoint(int8: bool) -> LidarGraph:
    """The encoder as a graph, first block half, with weights that keep features near 1."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = []
    count = 0

    def conv(source: str, cin: int, cout: int, level: int, **changes: Any) -> str:
        nonlocal count
        kernel = changes.pop("kernel", (3, 3, 3))
        scale = np.sqrt(6.0 / (int(np.prod(kernel)) * cin))
        weight = (scale * rng.standard_normal((cout, *kernel, cin))).astype(np.float16)
        ranges = tuple(float(r) for r in np.abs(weight.astype(np.float32)).max((1, 2, 3, 4)))
        precision = "int8" if int8 and count > 2 else "fp16"
        # Outputs of the first three convolutions and of the last one stay half.
        written = "int8" if int8 and 2 < count < 20 else "fp16"
        settings: dict[str, Any] = {
            "stride": (1, 1, 1), "padding": (1, 1, 1), "kind": "subm", "rulebook": f"res{level}",
            "activation": "relu", **changes,
        }  # fmt: skip
        nodes.append(
            ConvNode(
                name=f"conv{count}", source=source, target=f"t{len(nodes)}", weight=weight,
                bias=np.zeros(cout, np.float16), kernel=kernel, dilation=(1, 1, 1),
                grid_shape=GRID, precision=precision, output_precision=written, input_range=8.0,
                weight_ranges=ranges, **settings,
            )
        )  # fmt: skip
        count += 1
        return nodes[-1].target

    x = conv("0", 5, 16, 0)
    for level, width in enumerate(WIDTHS):
        if level:
            padding = (0, 1, 1) if level == 3 else (1, 1, 1)
            x = conv(x, WIDTHS[level - 1], width, level, kind="strided", rulebook="",
                     stride=(2, 2, 2), padding=padding)  # fmt: skip
        for block in range(2):
            y = conv(x, width, width, level)
            y = conv(y, width, width, level, activation="none")
            half = level == 0 and block == 0
            nodes.append(
                AddNode(f"add{count}", y, x, f"t{len(nodes)}", 8.0, 8.0,
                        "fp16" if half or not int8 else "int8", "int8" if int8 else "fp16")
            )  # fmt: skip
            nodes.append(ReluNode(f"relu{count}", nodes[-1].target, f"t{len(nodes)}"))
            x = nodes[-1].target
    x = conv(x, 128, 128, 4, kernel=(3, 1, 1), kind="strided", rulebook="", stride=(2, 1, 1),
             padding=(0, 0, 0))  # fmt: skip
    nodes.append(ScatterNode("scatter", x, "dense", "zyx"))
    nodes.append(ReshapeNode("reshape", "dense", "out", (1, 256, 180, 180)))
    return LidarGraph(tuple(nodes), "0", ("out",), GRID, 5, {})


def measure(engine: SparseEngine, features: Any, indices: Any, batch: int = 1) -> dict[str, float]:
    """Milliseconds a frame: medians and a 90th percentile on the device, and of the host.

    "median": between events around a frame that stands behind another one, as in a pipeline.
    "alone": each frame waited for, so the time of enqueueing counts too. "wall": the host's time in
    a loop that does not wait. "host": what enqueueing takes.
    """
    cuda = engine.cuda
    assert cuda is not None
    out = engine(features, indices, GRID, batch)
    for _ in range(5):
        cuda.enqueue(features, indices, GRID, batch, out=out)
        cuda.check()
    start, end, alone = Event(), Event(), []
    for _ in range(100):
        start.record(cuda.stream)
        cuda.enqueue(features, indices, GRID, batch, out=out)
        end.record(cuda.stream)
        cuda.check()
        alone.append(end.milliseconds_since(start))
    events = [Event() for _ in range(111)]
    begin = time.perf_counter()
    for event in events:
        cuda.enqueue(features, indices, GRID, batch, out=out)
        event.record(cuda.stream)
    host = (time.perf_counter() - begin) / len(events) * 1e3
    cuda.check()
    wall = (time.perf_counter() - begin) / len(events) * 1e3
    times = [b.milliseconds_since(a) for a, b in pairwise(events[10:])]
    for event in (start, end, *events):
        event.close()
    return {"median": float(np.median(times)), "p90": float(np.quantile(times, 0.9)),
            "alone": float(np.median(alone)), "wall": wall, "host": host}  # fmt: skip


def profile(engine: SparseEngine, features: Any, indices: Any) -> None:
    """Device time of every call of a frame, in one graph with an event after each."""
    from s4d_runtime.lidar.cuda_program import Inputs

    cuda = engine.cuda
    assert cuda is not None
    program = cuda._reservation.bound(GRID, 1, cuda.stream).program
    view = cuda._staging.view(features, "features", cuda.stream)
    rows = cuda._staging.view(indices, "indices", cuda.stream)
    inputs = Inputs(view.address, view.dtype, rows.address, view.shape[0])
    out = cuda._results.lend(program.dense_shape, program.dense_type, cuda.stream)
    for name, time_us in program.frame(inputs, 0, out.address).profile(cuda.stream.handle, 30):
        print(f"  {name:<16} {time_us:8.1f} us")


def device_arrays(engine: SparseEngine, features: Any, indices: Any) -> tuple[Any, Any]:
    """The arrays on the device."""
    assert engine.cuda is not None
    results, stream = engine.cuda._results, engine.cuda.stream
    tensors = []
    for array in (np.ascontiguousarray(features), np.ascontiguousarray(indices)):
        tensor = results.lend(array.shape, array.dtype.name, stream)
        stream.upload(tensor.address, array.ctypes.data, array.nbytes)
        stream.synchronize()
        tensors.append(tensor)
    return tensors[0], tensors[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voxels")
    parser.add_argument("--points", help="float16 points of five values: time from_points too")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    indices = read_tensor(args.voxels)
    rng = np.random.default_rng(0)
    for precision in ("fp16", "int8", "fp32"):
        engine = SparseEngine(centerpoint(precision == "int8"), precision, device="cuda")
        features = rng.standard_normal((len(indices), 5)).astype(np.float16)
        held = device_arrays(engine, features, indices)
        figures = measure(engine, *held)
        assert engine.cuda is not None
        cuda = engine.cuda
        dense = 2 * 256 * 180 * 180 * (2 if precision == "fp32" else 1)
        print(f"{precision}: {len(indices)} voxels, {figures['median']:.3f} ms (p90 "
              f"{figures['p90']:.3f}), alone {figures['alone']:.3f}, wall {figures['wall']:.3f}, "
              f"host {figures['host']:.3f} ms; weights "
              f"{cuda.weight_bytes / 1e6:.1f} MB, working memory "
              f"{cuda._reservation.nbytes / 1e6:.1f} MB, map {dense / 1e6:.1f} MB")  # fmt: skip
        exact = cuda.check()
        cuda.close()
        cuda._reservation._rows.clear()
        cuda.reserve(len(indices), rows=exact)
        figures = measure(engine, *held)
        print(f"  reserved for this frame's rows {exact}: {cuda._reservation.nbytes / 1e6:.1f} MB, "
              f"{figures['median']:.3f} ms (p90 {figures['p90']:.3f}), alone "
              f"{figures['alone']:.3f}")  # fmt: skip
        if args.profile:
            profile(engine, *held)
        if precision == "fp32":
            continue
        for count, batch in (
            (10000, 1),
            (40000, 1),
            (160000, 1),
            (300000, 1),
            (79745, 4),
            (79745, 8),
        ):
            rows = np.concatenate([repeated(indices, count, b) for b in range(batch)])
            features = rng.standard_normal((len(rows), 5)).astype(np.float16)
            again = SparseEngine(centerpoint(precision == "int8"), precision, device="cuda")
            figures = measure(again, *device_arrays(again, features, rows), batch)
            assert again.cuda is not None
            print(f"  batch {batch} x {count}: {figures['median']:.3f} ms, working memory "
                  f"{again.cuda._reservation.nbytes / 1e6:.0f} MB")  # fmt: skip
            again.cuda.close()
        if args.points:
            points_to_map(engine, args.points)


def repeated(indices: np.ndarray, count: int, sample: int) -> np.ndarray:
    """``count`` rows spread like the real ones: a part of them, or shifted copies as well."""
    rows = indices
    shift = 1
    while len(rows) < count:
        moved = indices.copy()
        moved[:, 2] = (moved[:, 2] + 361 * shift) % 1440
        moved[:, 3] = (moved[:, 3] + 173 * shift) % 1440
        rows = np.unique(np.concatenate([rows, moved]), axis=0)
        shift += 1
    rows = rows[np.random.default_rng(1).permutation(len(rows))[:count]].astype(np.int32)
    rows[:, 0] = sample
    return rows


def points_to_map(engine: SparseEngine, path: str) -> None:
    """The whole way from points on the device, waiting for each frame."""
    cloud = np.fromfile(path, np.float16).reshape(-1, 5).astype(np.float32)
    cloud[:, 3] /= 255
    points, _ = device_arrays(engine, cloud, np.zeros((1, 4), np.int32))
    engine.voxel_rules = VoxelRules()
    times, voxel_times = [], []
    for number in range(60):
        begin = time.perf_counter()
        engine.voxelize(points)
        middle = time.perf_counter()
        engine.from_points(points)
        if number >= 10:
            voxel_times.append((middle - begin) * 1e3)
            times.append((time.perf_counter() - middle) * 1e3)
    print(f"  {len(cloud)} points: voxelise {np.median(voxel_times):.3f} ms, "
          f"points to map {np.median(times):.3f} ms, both with the host's wait")  # fmt: skip


if __name__ == "__main__":
    main()
