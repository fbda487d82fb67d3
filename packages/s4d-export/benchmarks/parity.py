"""Torch against ONNX Runtime at a model's real size: errors, and milliseconds per frame.

    python benchmarks/parity.py --model sparse4dv3_r50 --data NUSCENES_DIR --threads 2

Weights are drawn from a seed (tests/helpers.py), images come from a data set in nuScenes layout
or are random. Writes CHECKPOINT and artifacts into --folder and prints one table per mode.
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
    parser.add_argument("--data", help="nuScenes directory; default: random images")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ops", nargs="+", default=["plugin", "standard"])
    parser.add_argument("--folder", type=Path, default=Path("parity"))
    options = parser.parse_args()

    import torch
    from helpers import seeded_model

    from s4d_core import save_checkpoint
    from s4d_export import (
        build_manifest,
        export_graph,
        nuscenes_frames,
        random_frames,
        save_artifact,
        verify,
    )
    from s4d_export.verification import format_result

    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    model = seeded_model(options.model)
    save_checkpoint(model, options.folder / "checkpoint")
    passed = True
    for op in options.ops:
        path = options.folder / f"{options.model}-{op}.s4d"
        if not path.exists():
            start = time.perf_counter()
            graph = export_graph(model, op)
            save_artifact(path, graph, build_manifest(model.config, path.stem, op, "fp32"))
            print(
                f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, exported in "
                f"{time.perf_counter() - start:.0f} s"
            )
        if options.data:
            frames = nuscenes_frames(model.config, options.data, options.frames)
        else:
            frames = random_frames(model.config, options.frames)
        result = verify(model, path, frames, threads=options.threads, progress=True)
        print(format_result(result), flush=True)
        (options.folder / f"{path.stem}.json").write_text(json.dumps(result, indent=1))
        passed &= result["passed"]
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
