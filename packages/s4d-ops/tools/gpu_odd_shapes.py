#!/usr/bin/env python3
"""Runs every CUDA kernel once on small odd shapes, for compute-sanitizer (see gpu_check.sh)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from cuda_cases import CASES, TOLERANCE, make_inputs

from s4d_ops import image_cuda
from s4d_ops.image import FILTERS, plan_resize_crop
from s4d_ops.torch import deformable_aggregation


def main() -> None:
    for case in CASES:
        for dtype in TOLERANCE:
            inputs = make_inputs(case, dtype)
            output = deformable_aggregation(*inputs)
            grad = torch.ones_like(output)
            for deterministic in (False, True):
                gradients = torch.ops.s4d.deformable_aggregation_backward(
                    grad, *inputs, True, True, True, deterministic
                )
            # Reading every result lets initcheck see what was not written.
            total = sum(float(value.double().nansum()) for value in (output, *gradients))
            print(case.name, dtype, f"{total:.6g}", flush=True)
    for raw in ((37, 53), (90, 161)):
        plan = plan_resize_crop(raw, (32, 49))
        picture = torch.randint(0, 256, (*raw, 3), device="cuda", dtype=torch.uint8)
        for name in FILTERS:
            for shape, dtype in (((1, 32, 49, 3), torch.uint8), ((1, 3, 32, 49), torch.float16)):
                out = torch.empty(shape, dtype=dtype, device="cuda")
                image_cuda.resize_crop([picture], plan, out, name)
                print(name, raw, float(out.double().sum()), flush=True)


if __name__ == "__main__":
    main()
