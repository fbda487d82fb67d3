"""Times resize and crop of camera images on a CUDA device and prints a table.

    python benchmarks/cuda_image.py [--raw 900 1600] [--size 256 704] [--images 6] [--json FILE]

Each row is the median of event timings of CUDA-graph replays. A graph holds several calls, each
with images of its own: together they exceed the L2 cache, so pixels come from device memory. Bytes
are the pixels that the crop uses, read once, and the result; the share is their time at the
bandwidth of a large copy, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from cuda_aggregation import copy_bandwidth, time_calls

from s4d_ops import image, image_cuda

SETS = 6
TYPES = {"uint8": torch.uint8, "fp32": torch.float32, "fp16": torch.float16}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def used_bytes(plan: image.ResizeCrop, count: int, out: torch.Tensor) -> float:
    """Raw pixels under the crop, and the result."""
    height, width = plan.resized_size
    rows = min(plan.top + plan.height, height) - max(plan.top, 0)
    columns = min(plan.left + plan.width, width) - max(plan.left, 0)
    pixels = plan.raw_size[0] * plan.raw_size[1] * (rows / height) * (columns / width)
    return 3 * count * pixels + out.numel() * out.element_size()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--raw", type=int, nargs=2, default=(900, 1600), metavar=("H", "W"))
    parser.add_argument("--size", type=int, nargs=2, default=(256, 704), metavar=("H", "W"))
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    plan = image.plan_resize_crop(tuple(options.raw), tuple(options.size))
    random = torch.Generator("cuda").manual_seed(0)
    size = (options.images, *options.raw, 3)
    sets = [
        torch.randint(0, 256, size, generator=random, device="cuda", dtype=torch.uint8)
        for _ in range(SETS)
    ]
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}; copy {bandwidth / 1e12:.2f} TB/s; {size} to {plan}")
    print(f"{'filter':>16} {'result':>7} {'us':>8} {'MB':>7} {'share':>6}")
    rows = []
    for name in image.FILTERS:
        for kind, dtype in TYPES.items():
            last = (plan.height, plan.width)
            shape = (*last, 3) if dtype == torch.uint8 else (3, *last)
            outs = [torch.empty((options.images, *shape), dtype=dtype, device="cuda") for _ in sets]

            def call(given: torch.Tensor, out: torch.Tensor, name: str = name) -> None:
                stream = torch.cuda.current_stream().cuda_stream
                image_cuda.resize_crop(list(given), plan, out, name, MEAN, STD, stream)

            calls = [
                lambda g=g, o=o, call=call: call(g, o) for g, o in zip(sets, outs, strict=True)
            ]
            micros = time_calls(calls, 15, 2)
            moved = used_bytes(plan, options.images, outs[0])
            share = moved / (micros * 1e-6) / bandwidth
            print(f"{name:>16} {kind:>7} {micros:8.1f} {moved / 1e6:7.1f} {share:6.1%}")
            rows.append({"filter": name, "result": kind, "us": micros, "bytes": moved})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
