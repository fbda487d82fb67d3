"""Milliseconds of the sparse engine on the CPU, and of spconv's CPU build where it is installed.

    python benchmarks/lidar_cpu.py VOXELS.tensor [--threads 2] [--frames 10]

VOXELS.tensor: index rows (V, 4) int32 batch z y x of a real frame, grid 41 x 1440 x 1440. The
network is CenterPoint's encoder with random weights; rulebooks and dense map count, medians over
frames. With more than one thread spconv's map is a little wrong: its strided convolutions race.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from lidar_cuda import GRID, centerpoint

from s4d_runtime.lidar import SparseEngine, read_tensor
from s4d_runtime.lidar.nodes import AddNode, ConvNode


def median(run: Callable[[], Any], frames: int) -> tuple[float, float]:
    """Milliseconds of a call by the clock, and of all its threads on the processor."""
    run()
    walls, processors = [], []
    for _ in range(frames):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return 1e3 * float(np.median(walls)), 1e3 * float(np.median(processors))


def table(times: tuple[float, float]) -> str:
    """Both times of :func:`median`."""
    return f"{times[0]:.0f} ms, {times[1]:.0f} ms on the processor"


def spconv_encoder(features: np.ndarray, indices: np.ndarray) -> Callable[[], Any]:
    """The same layers in spconv. Its CPU kernels take no bias; ours are zero."""
    import spconv.pytorch as spconv
    import torch

    graph = centerpoint(False)
    layers: dict[str, Any] = {}
    for node in graph.nodes:
        if isinstance(node, ConvNode):
            out, *_, depth = node.weight.shape
            given = (depth, out, node.kernel)
            layer = (
                spconv.SubMConv3d(*given, bias=False, indice_key=node.rulebook)
                if node.kind == "subm"
                else spconv.SparseConv3d(*given, node.stride, node.padding, bias=False)
            )
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(node.weight.astype(np.float32)))
            layers[node.name] = layer
    values = torch.from_numpy(features.astype(np.float32))
    rows = torch.from_numpy(indices.copy())

    def run() -> Any:
        tensors = {graph.source: spconv.SparseConvTensor(values, rows.clone(), list(GRID), 1)}
        result = tensors[graph.source]
        with torch.no_grad():
            for node in graph.nodes:
                if isinstance(node, ConvNode):
                    result = layers[node.name](tensors[node.source])
                    if node.activation == "relu":
                        result = result.replace_feature(torch.relu(result.features))
                elif isinstance(node, AddNode):
                    left, right = tensors[node.left], tensors[node.right]
                    result = left.replace_feature(torch.relu(left.features + right.features))
                tensors[node.target] = result
        dense = result.dense()
        return dense.view(1, -1, *dense.shape[-2:])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("voxels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=10)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # spconv's; before it is loaded
    indices = read_tensor(args.voxels)
    features = np.random.default_rng(0).standard_normal((len(indices), 5)).astype(np.float16)
    ours = {}
    for precision in ("fp32", "fp16", "int8"):
        engine = SparseEngine(centerpoint(precision == "int8"), precision, threads=args.threads)
        ours[precision] = median(lambda: engine(features, indices), args.frames)  # noqa: B023
        print(f"{precision}: {table(ours[precision])}", flush=True)
    try:
        run = spconv_encoder(features, indices)
    except ImportError as error:
        print(f"spconv is not installed ({error})")
        return
    theirs = median(run, max(2, args.frames // 3))
    print(f"spconv: {table(theirs)}")
    for precision, figures in ours.items():
        print(f"  {precision}: {theirs[0] / figures[0]:.1f} times faster")
    want = SparseEngine(centerpoint(False), "fp32", threads=args.threads)(features, indices)
    apart = np.linalg.norm(run().numpy() - want) / np.linalg.norm(want)
    print(f"  relative difference of the maps, fp32: {apart:.1e}")


if __name__ == "__main__":
    main()
