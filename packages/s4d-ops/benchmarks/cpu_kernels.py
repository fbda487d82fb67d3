"""CPU times of the operators at the size of Sparse4Dv3 R50, 256 x 704, as a markdown table.

    python benchmarks/cpu_kernels.py [--threads 2] [--repeat 11]

Deformable aggregation: 89 760 feature rows of 256 channels, 13 points, 6 views, 4 levels, 8
groups, 900 anchors. "20 %": that share of the (anchor, view) pairs is in the image, the points of
an anchor close together, as in a real frame. The ratio is to s4d_ops.reference in the same run.
Images: six of 900 x 1600 to 256 x 704; the ratio is to Pillow.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

LEVELS = [(64, 176), (32, 88), (16, 44), (8, 22)]
VIEWS, CHANNELS, ANCHORS, POINTS, GROUPS = 6, 256, 900, 13, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=11, help="calls per figure (the median)")
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, median of {arguments.repeat} calls\n")
    print("| what | milliseconds | compared with | its milliseconds | ratio |")
    print("|---|---|---|---|---|")
    _aggregation(arguments.threads, arguments.repeat)
    _images(arguments.threads, arguments.repeat)


def _median(call: Callable[[], object], repeat: int) -> float:
    """Milliseconds, after one call to warm up."""
    call()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def _row(what: str, ours: float, other: str = "", theirs: float = 0.0) -> None:
    compared = f"{other} | {theirs:.1f} | {theirs / ours:.1f}" if other else " |  | "
    print(f"| {what} | {ours:.1f} | {compared} |", flush=True)


def _aggregation(threads: int, repeat: int) -> None:
    try:
        import torch

        from s4d_ops import reference
        from s4d_ops.torch import deformable_aggregation
    except ImportError as error:
        print(f"| deformable aggregation: not run, {error} | | | | |")
        return
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    spatial = torch.tensor([LEVELS] * VIEWS)
    rows = spatial.prod(-1)
    starts = (rows.flatten().cumsum(0) - rows.flatten()).reshape(rows.shape)
    features = torch.randn(1, int(rows.sum()), CHANNELS)
    for label, visible in (("20 %", 0.2), ("all", 1.0)):
        center = torch.rand(1, ANCHORS, 1, VIEWS, 2) * 0.9 + 0.05
        spread = (torch.rand(1, ANCHORS, POINTS, VIEWS, 2) - 0.5) * 0.05
        hidden = torch.rand(1, ANCHORS, 1, VIEWS, 1) >= visible
        locations = torch.where(hidden, torch.tensor(-1.0), center + spread)
        weights = torch.rand(1, ANCHORS, POINTS, VIEWS, len(LEVELS), GROUPS) / 312
        rest = (spatial, starts, locations, weights)
        grad = torch.randn(1, ANCHORS, CHANNELS)
        few = max(2, repeat // 4)  # the reference is slow
        with torch.no_grad():
            plain = _median(lambda r=rest: reference.deformable_aggregation(features, *r), few)
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                value = features.to(dtype)
                ours = _median(lambda v=value, r=rest: deformable_aggregation(v, *r), repeat)
                name = str(dtype).removeprefix("torch.")
                compared = ("reference, float32", plain) if dtype == torch.float32 else ()
                _row(f"aggregation forward, {label} visible, {name}", ours, *compared)

        def step(op: Callable[..., torch.Tensor], r=rest, g=grad) -> None:
            leaves = [v.detach().requires_grad_() for v in (features, r[2], r[3])]
            op(leaves[0], *r[:2], *leaves[1:]).backward(g)

        _row(
            f"aggregation forward + backward, {label} visible, float32",
            _median(lambda s=step: s(deformable_aggregation), repeat),
            "reference, float32",
            _median(lambda s=step: s(reference.deformable_aggregation), few),
        )


def _images(threads: int, repeat: int) -> None:
    from s4d_ops.image import FILTERS, plan_resize_crop, resize_crop

    try:
        from PIL import Image
    except ImportError:
        Image = None  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (900, 1600, 3), dtype=np.uint8) for _ in range(VIEWS)]
    plan = plan_resize_crop((900, 1600), (256, 704))
    out = np.empty((256, 704, 3), np.uint8)
    box = (plan.left, plan.top, plan.left + plan.width, plan.top + plan.height)
    for name in FILTERS:
        ours = _median(
            lambda n=name: [resize_crop(image, plan, n, out, threads) for image in images], repeat
        )
        kind = name.removeprefix("pillow_").upper()
        if Image is None or not name.startswith("pillow"):
            _row(f"six images, {name}", ours)
            continue
        method = Image.Resampling[kind]

        def pillow(m=method) -> None:
            size = plan.resized_size[::-1]
            for image in images:
                np.asarray(Image.fromarray(image).resize(size, m).crop(box))

        _row(f"six images, {name}", ours, "Pillow", _median(pillow, max(2, repeat // 3)))


if __name__ == "__main__":
    main()
