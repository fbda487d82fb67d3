"""What deformable convolution costs v1: frames and training steps with it and without.

    python tools/model_zoo/deform_conv.py [--device cpu --reduced] [--out deform_conv.json]

Three versions of the same model: as it is; with the gradient of torch operations instead of the
native operator's; and with plain 3 x 3 convolutions of the same weights, which is what is left when
deformable convolution costs nothing more. Needs s4d-train, as `model_zoo.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from zoo_models import frame, prepared, small
from zoo_parts import training

import s4d_core
from s4d_core.backbones import deform_conv
from s4d_core.backbones.column_gradients import indexed_gradients
from s4d_core.backbones.deform_conv import DeformConv2d

ONE, FOUR = "sparse4dv1_r101_h1_640x1600", "sparse4dv1_r101_h4_640x1600"
VERSIONS = ("as it is", "torch gradient", "plain 3x3")


@contextmanager
def version(name: str) -> Iterator[None]:
    """Inside, deformable convolutions are of this version."""
    native, forward = deform_conv.native_gradients, DeformConv2d.forward

    def plain(self: DeformConv2d, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, None, self.stride, 1)

    if name == "torch gradient":
        deform_conv.native_gradients = indexed_gradients
    if name == "plain 3x3":
        DeformConv2d.forward = plain  # type: ignore[method-assign]
    try:
        yield
    finally:
        deform_conv.native_gradients = native
        DeformConv2d.forward = forward  # type: ignore[method-assign]


def milliseconds(work: Callable[[], object], device: str, repeat: int) -> float:
    def run(times: int) -> None:
        for _ in range(times):
            work()
        if device == "cuda":
            torch.cuda.synchronize()

    run(4)
    start = time.perf_counter()
    run(repeat)
    return round((time.perf_counter() - start) / repeat * 1e3, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reduced", action="store_true", help="few channels and blocks")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    found: dict[str, float | None] = {}

    def put(key: str, value: float | None) -> None:
        found[key] = value
        print(time.strftime("%X"), f"{key}: {value}", flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(found, indent=1) + "\n")

    def config(name: str) -> s4d_core.Sparse4DConfig:
        full = s4d_core.get_config(name)
        return small(full) if args.reduced else full

    def frames() -> None:
        model, shown = prepared(config(ONE), args.device), frame(config(ONE), args.device, 0)
        for precision in ("fp32", "bf16"):
            half = precision == "bf16"

            def one(half: bool = half) -> object:
                with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=half):
                    return model(**shown)

            for kind in (VERSIONS[0], VERSIONS[2]):
                with version(kind):
                    ms = milliseconds(one, args.device, args.repeat)
                put(f"{ONE}, frame, {precision}, {kind}, ms", ms)

    frames()
    for name, batch in ((ONE, 1), (FOUR, 1), (FOUR, 2)):
        for kind in VERSIONS:
            with version(kind):
                part = training(config(name), args.device, batch, args.repeat)
            put(f"{name}, step of {batch}, {kind}, s", part["seconds"])
            put(f"{name}, step of {batch}, {kind}, GB", part["gb"])


if __name__ == "__main__":
    main()
