"""Torch against the runtime's engines at a model's real size: errors, and milliseconds per frame.

    python benchmarks/parity.py --data NUSCENES_DIR --threads 2
    python benchmarks/parity.py --frames 40 --precisions fp32 fp16 int8 --torch-device cuda \\
        --backends onnxruntime-cpu onnxruntime-cuda

Weights are drawn from a seed (tests/helpers.py) or those of --checkpoint, images come from a data
set in nuScenes layout or are random; int8 is calibrated on two of the frames. Writes the checkpoint
and artifacts into --folder and prints one table per artifact and engine.
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
    parser.add_argument("--folder", type=Path, default=Path("parity"))
    options = parser.parse_args()

    import torch
    from helpers import seeded_model

    from s4d_core import load_checkpoint, save_checkpoint
    from s4d_export import export_graph, nuscenes_frames, random_frames, verify
    from s4d_export.rollout import Recorded, TorchRunner
    from s4d_export.verification_report import format_result

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
    return 0 if passed else 1


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
