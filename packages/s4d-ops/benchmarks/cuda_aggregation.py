"""Times deformable aggregation on a CUDA device and prints a table.

    python benchmarks/cuda_aggregation.py [--quick] [--only TEXT] [--json FILE]

Each row is the median of event timings of CUDA-graph replays; one graph holds several calls over
rotating sets of inputs that together exceed the L2 cache, so features come from device memory as
they do behind a backbone. `unique` counts each byte once: the feature rows that visible points
touch, locations, weights of visible points, results; for backward also the zeroed and updated
gradient. `gather` counts all sampled neighbours. The share is unique bytes per time over the
bandwidth of a large copy measured in the same run. The baseline is `cuda_baseline.cu`, compiled
here with nvcc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

LEVELS = ((64, 176), (32, 88), (16, 44), (8, 22))
SPREAD = 0.04  # points of an anchor lie within +-SPREAD of the image around its centre
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Case:
    batch: int
    anchors: int
    visible: float
    views: int = 6
    points: int = 13
    groups: int = 8
    channels: int = 256


@dataclass
class Inputs:
    features: torch.Tensor
    shapes: torch.Tensor
    starts: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    grad: torch.Tensor

    def args(self) -> tuple[torch.Tensor, ...]:
        return self.features, self.shapes, self.starts, self.locations, self.weights


def make_inputs(case: Case, dtype: torch.dtype, seed: int) -> Inputs:
    """Anchors at uniform places in the image of each view that sees them, else out of view."""
    random = torch.Generator("cuda").manual_seed(seed)

    def uniform(*size: int) -> torch.Tensor:
        return torch.rand(size, generator=random, device="cuda")

    shapes = torch.tensor([LEVELS] * case.views, dtype=torch.int32)
    sizes = shapes.prod(-1).flatten()
    starts = (sizes.cumsum(0) - sizes).reshape(case.views, -1).to(torch.int32)
    rows = int(sizes.sum())
    pair = (case.batch, case.anchors, 1, case.views)
    centre = SPREAD + (1 - 2 * SPREAD) * uniform(*pair, 2)
    offset = (2 * uniform(case.batch, case.anchors, case.points, case.views, 2) - 1) * SPREAD
    seen = uniform(*pair, 1) < case.visible
    locations = torch.where(seen, centre + offset, -1.0 - offset)
    weights = torch.randn(
        *locations.shape[:-1], len(LEVELS), case.groups, generator=random, device="cuda"
    )
    weights = weights.flatten(2, 4).softmax(2).reshape(weights.shape)
    features = torch.randn(case.batch, rows, case.channels, generator=random, device="cuda")
    grad = torch.randn(case.batch, case.anchors, case.channels, generator=random, device="cuda")
    return Inputs(
        features.to(dtype),
        shapes.cuda(),
        starts.cuda(),
        locations,
        weights.to(dtype) if dtype == torch.float32 else weights,
        grad.to(dtype),
    )


def count_bytes(inputs: Inputs) -> tuple[float, float, float]:
    """(unique forward bytes, unique backward bytes, gathered bytes)."""
    batch, rows, channels = inputs.features.shape
    touched = torch.zeros(batch, rows, dtype=torch.bool, device="cuda")
    seen = ((inputs.locations > 0) & (inputs.locations < 1)).all(-1)
    samples = 0
    where = seen.nonzero()
    sample, view = where[:, 0], where[:, 3]
    at = inputs.locations[seen]
    for level in range(inputs.shapes.shape[1]):
        height, width = inputs.shapes[view, level].unbind(-1)
        x0 = (at[:, 0] * width - 0.5).floor().long()
        y0 = (at[:, 1] * height - 0.5).floor().long()
        for k in range(4):
            x, y = x0 + k % 2, y0 + k // 2
            inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
            row = inputs.starts[view, level] + y * width + x
            touched[sample[inside], row[inside]] = True
            samples += int(inside.sum())
    size = inputs.features.element_size()
    row_bytes = channels * size
    unique = int(touched.sum()) * row_bytes
    weights = where.shape[0] * inputs.weights.shape[4:].numel() * inputs.weights.element_size()
    small = inputs.locations.numel() * inputs.locations.element_size() + weights
    result = inputs.grad.numel() * size
    # Backward: rows read; the gradient zeroed once, and its touched rows read and written in fp32.
    gradient = inputs.features.numel() * 4 + 2 * int(touched.sum()) * channels * 4
    if size < 4:
        gradient += inputs.features.numel() * (4 + size)  # fp32 sums to the features' type
    all_small = inputs.locations.numel() * 4 + inputs.weights.numel() * 4
    return (
        unique + small + result,
        unique + small + result + gradient + all_small,
        samples * row_bytes,
    )


def time_calls(calls: list, repeat: int, rounds: int) -> float:
    """Median microseconds of one call, over replays of a graph of `rounds` times all calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    graph.replay()
    times = []
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second of a 4 GiB device copy, read plus written."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return 2 * 4 * source.numel() / statistics.median(times)


def load_baseline() -> ctypes.CDLL | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    source = Path(__file__).with_name("cuda_baseline.cu")
    major, minor = torch.cuda.get_device_capability()
    target = Path(tempfile.mkdtemp()) / "baseline.so"
    subprocess.run(
        [nvcc, f"-arch=sm_{major}{minor}", "-O3", "-shared", "-Xcompiler", "-fPIC"]  # noqa: RUF005
        + ["-o", str(target), str(source)],
        check=True,
    )
    return ctypes.CDLL(str(target))


def baseline_calls(library: ctypes.CDLL, case: Case, sets: list[Inputs], backward: bool) -> list:
    def pointers(tensors: tuple[torch.Tensor, ...]) -> list[ctypes.c_void_p]:
        return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]

    rows = sets[0].features.shape[1]
    sizes = (ctypes.c_int64 * 8)(
        case.batch, rows, case.channels, case.views, len(LEVELS), case.anchors, case.points,
        case.groups,
    )  # fmt: skip

    def call(inputs: Inputs) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if backward:
            wanted = (inputs.features, inputs.locations, inputs.weights)
            gradients = tuple(torch.zeros_like(tensor) for tensor in wanted)
            code = library.baseline_backward(
                sizes, *pointers((*inputs.args(), inputs.grad, *gradients)), stream
            )
        else:
            output = torch.zeros_like(inputs.grad)
            code = library.baseline_forward(sizes, *pointers((*inputs.args(), output)), stream)
        if code:
            raise RuntimeError(f"baseline kernel failed with CUDA error {code}")

    return [lambda inputs=inputs: call(inputs) for inputs in sets]


def op_calls(sets: list[Inputs], mode: str) -> list:
    ops = torch.ops.s4d
    if mode == "forward":
        return [lambda i=i: ops.deformable_aggregation(*i.args()) for i in sets]
    fixed = mode == "backward det."
    return [
        lambda i=i: ops.deformable_aggregation_backward(i.grad, *i.args(), True, True, True, fixed)
        for i in sets
    ]


def load_op() -> None:
    import s4d_ops.torch  # noqa: F401  (registers the operators)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no baseline")
    parser.add_argument("--only", default="", help="only rows whose label contains this text")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    load_op()
    baseline = None if options.quick else load_baseline()
    repeat = 7 if options.quick else 15
    bandwidth = copy_bandwidth()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; copy {bandwidth / 1e12:.2f} TB/s; spread {SPREAD}")
    print(
        f"{'shape':>16} {'visible':>7} {'pass':>13} {'type':>4} {'us':>9} {'unique MB':>9} "
        f"{'share':>6} {'gather TB/s':>11} {'baseline us':>11} {'ratio':>6}"
    )
    rows = []
    for case in (Case(1, 900, 0.2), Case(1, 900, 1.0), Case(6, 1220, 0.2), Case(6, 1220, 1.0)):
        shape = f"bs{case.batch} x {case.anchors}"
        slow: dict[str, float] = {}
        for kind, dtype in DTYPES.items():
            if options.only and options.only not in f"{shape} {kind}":
                continue
            sets = [make_inputs(case, dtype, seed) for seed in range(4 if case.batch == 1 else 2)]
            forward_bytes, backward_bytes, gathered = count_bytes(sets[0])
            modes = ["forward", "backward"] + (["backward det."] if kind == "fp32" else [])
            for mode in modes:
                heavy = mode != "forward" or case.batch > 1
                micros = time_calls(op_calls(sets, mode), repeat, 1 if heavy else 4)
                if baseline is not None and kind == "fp32" and mode != "backward det.":
                    calls = baseline_calls(baseline, case, sets, mode == "backward")
                    slow[mode] = time_calls(calls, 3, 1)
                plain = slow.get(mode.removesuffix(" det."))
                unique = forward_bytes if mode == "forward" else backward_bytes
                share = unique / (micros * 1e-6) / bandwidth
                row = {
                    "shape": shape, "visible": case.visible, "pass": mode, "type": kind,
                    "us": micros, "unique_mb": unique / 1e6, "share": share,
                    "gather_tbs": gathered / micros / 1e6, "baseline_us": plain,
                }  # fmt: skip
                rows.append(row)
                ratio = f"{plain:11.1f} {plain / micros:6.1f}" if plain else ""
                print(
                    f"{shape:>16} {case.visible:7.0%} {mode:>13} {kind:>4} {micros:9.1f} "
                    f"{unique / 1e6:9.1f} {share:6.1%} {gathered / micros / 1e6:11.2f} {ratio}",
                    flush=True,
                )
            del sets
    if options.json:
        options.json.write_text(json.dumps({"device": name, "copy": bandwidth, "rows": rows}))


if __name__ == "__main__":
    main()
