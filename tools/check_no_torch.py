"""s4d-runtime alone: import it, run an artifact, and see that torch is nowhere.

python tools/check_no_torch.py NAME.s4d
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import time

import numpy as np


def main(artifact: str) -> None:
    if importlib.util.find_spec("torch") is not None:
        raise SystemExit("torch can be imported here: this environment proves nothing")
    seconds = min(import_seconds() for _ in range(5))
    from s4d_runtime import Frame, Pipeline
    from s4d_runtime.frame import Camera

    with Pipeline.load(artifact) as pipeline:
        count = len(pipeline.manifest.preprocessing.camera_names)
        random = np.random.default_rng(0)
        camera = Camera(np.array([[1260.0, 0, 800], [0, 1260, 450], [0, 0, 1]]), np.eye(4))
        for step in range(3):
            images = [random.integers(0, 256, (900, 1600, 3), np.uint8) for _ in range(count)]
            found = pipeline(Frame(images, 1.0 + 0.5 * step, np.eye(4), [camera] * count))
            if found is None or not np.isfinite(found.boxes).all():
                raise SystemExit(f"frame {step} gave no finite boxes: {found}")
    if "torch" in sys.modules:
        raise SystemExit("running an artifact imported torch")
    installed = sorted({item.name for item in importlib.metadata.distributions()})
    print(
        f"import s4d_runtime: {1e3 * seconds:.0f} ms; {len(installed)} distributions:", *installed
    )


def import_seconds() -> float:
    """Time of `from s4d_runtime import Pipeline` beyond an empty interpreter's start."""
    times = []
    for code in ("pass", "from s4d_runtime import Pipeline"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return times[1] - times[0]


if __name__ == "__main__":
    main(sys.argv[1])
