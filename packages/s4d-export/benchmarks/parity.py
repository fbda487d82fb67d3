"""Torch against the runtime's engines at a model's real size: errors, and milliseconds per frame.

    python benchmarks/parity.py --data NUSCENES_DIR --threads 2
    python benchmarks/parity.py --frames 40 --precisions fp32 fp16 int8 --torch-device cuda \\
        --backends onnxruntime-cpu onnxruntime-cuda --float64

Weights are drawn from a seed (tests/helpers.py) or those of --checkpoint, images come from a data
set in nuScenes layout or are random; int8 is calibrated on two of the frames. Writes the checkpoint
and artifacts into --folder and prints one table per artifact and engine. `--float64` adds how far
each free float32 roll-out is from the same one in double precision.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sparse4dv3_r50")
    parser.add_argument("--checkpoint", help="weights and configuration; default: seeded weights")
    parser.add_argument("--data", help="nuScenes directory; default: random images")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ops", nargs="+", default=["plugin", "standard"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--backends", nargs="+", default=["onnxruntime-cpu"])
    parser.add_argument("--torch-device", default="cpu", help="cpu or cuda (TF32 off)")
    parser.add_argument("--float64", action="store_true", help="judge fp32 by double precision")
    parser.add_argument("--folder", type=Path, default=Path("parity"))
    options = parser.parse_args()

    import torch
    from helpers import seeded_model

    from s4d_core import load_checkpoint, save_checkpoint
    from s4d_export import export_graph, nuscenes_frames, random_frames, verify
    from s4d_export.verification.report import format_result
    from s4d_export.verification.rollout import Recorded, TorchRunner

    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.checkpoint:
        model = load_checkpoint(options.checkpoint)
    else:
        model = seeded_model(options.model)
        save_checkpoint(model, options.folder / "checkpoint")
    if options.data:
        frames = list(nuscenes_frames(model.config, options.data, options.frames))
    else:
        frames = list(random_frames(model.config, options.frames))
    artifacts = []
    for op in options.ops:
        paths = {p: options.folder / f"{options.model}-{op}-{p}.s4d" for p in options.precisions}
        artifacts += paths.values()
        if all(path.exists() for path in paths.values()):
            continue
        start = time.perf_counter()
        graph = export_graph(model, op)
        print(f"{op}: exported in {time.perf_counter() - start:.0f} s", flush=True)
        for precision, path in paths.items():
            save(graph, model.config, op, precision, path, frames[:2])
    reference = Recorded(TorchRunner(model, options.torch_device), frames, progress=True)
    passed = True
    for path in artifacts:
        for backend in options.backends:
            reference.rewind()
            result = verify(
                model, path, frames, backend, options.threads, progress=True, reference=reference
            )
            print(format_result(result), flush=True)
            name = f"{path.stem}-{result['candidate']}.json"
            (options.folder / name).write_text(json.dumps(result, indent=1))
            passed &= result["passed"]
    if options.float64:
        exact = double_precision(model, options.torch_device, frames)
        against(exact, reference, frames)
        for path in artifacts:
            if "-fp32" in path.stem:
                for backend in options.backends:
                    against(exact, engine(path, backend, options.threads, frames), frames)
    return 0 if passed else 1


def double_precision(model, device, frames):
    """The roll-out of the model with all floating-point numbers in float64."""
    import copy

    from s4d_export.verification.rollout import Recorded, TorchRunner

    def double(value):
        return value.double() if value.is_floating_point() else value

    runner = TorchRunner(copy.deepcopy(model), device)
    runner._model.double()
    runner._model.register_forward_pre_hook(lambda _, given: tuple(map(double, given)))
    return Recorded(runner, frames)


def engine(path, backend, threads, frames):
    """The free roll-out of an artifact."""
    from s4d_export.verification.rollout import EngineRunner, Recorded
    from s4d_runtime.artifact import read_artifact

    with read_artifact(path) as opened:
        runner = EngineRunner(opened, backend, threads)
    try:
        return Recorded(runner, frames)
    finally:
        runner.close()


def against(exact, got, frames) -> None:
    """One line: errors of a roll-out, rows matched by identity."""
    from s4d_export.verification.comparison import TOLERANCES, Comparison

    comparison = Comparison(TOLERANCES["fp32"])
    exact.rewind()
    got.rewind()
    for frame in frames:
        if frame.reset:
            comparison.reset()
        comparison.add(exact.step(frame), got.step(frame))
    errors = comparison.result()["tensors"]
    boxes, scores = errors["boxes"], errors["scores"]
    print(
        f"{got.name} against float64: boxes max {boxes['max']:.1e}, 99.9 % {boxes['p99.9']:.1e}, "
        f"mean {boxes['mean']:.1e}; scores max {scores['max']:.1e}",
        flush=True,
    )


def save(graph, config, op, precision, path, frames) -> None:
    """One artifact; fp16 by the built-in plan, int8 with the rest in float32."""
    from s4d_export import build_manifest, calibrate, find_points, save_artifact, to_half, to_int8

    if precision == "fp16":
        graph = to_half(graph)
    elif precision == "int8":
        tensors = [point.tensor for point in find_points(graph)]
        graph = to_int8(graph, calibrate(graph, tensors, config, [f.images for f in frames]))
    save_artifact(path, graph, build_manifest(config, path.stem, op, precision))
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
