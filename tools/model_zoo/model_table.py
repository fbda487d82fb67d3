"""Writes docs/models.md: what every listed model is, and what was measured of it.

    python tools/model_zoo/model_table.py [--check]

Parameters and FLOPs come from the models themselves, built without values; figures of speed and
memory from `model_zoo.json` beside it, which `model_zoo.py` writes on a GPU; published accuracy
and its source from the table below. `--check` compares instead of writing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measured import measured_lines
from torch.utils.flop_counter import FlopCounterMode

import s4d_core
from s4d_core import Sparse4DConfig

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "model_zoo.json"
DOCUMENT = HERE.parents[1] / "docs" / "models.md"

V3 = "HorizonRobotics/Sparse4D, README"
V1 = "linxuewu/Sparse4D, README"


class Published(NamedTuple):
    """Accuracy on nuScenes as its authors give it, and the settings of `s4d-train`."""

    result: str
    source: str
    recipe: str


PUBLISHED = {
    "sparse4dv1_r101_h1_640x1600": Published("none found", "", "sparse4dv1_r101_h1_640x1600"),
    "sparse4dv1_r101_h4_640x1600": Published(
        "val NDS .5438, mAP .4409; 2.9 FPS on an RTX 3090", V1, "sparse4dv1_r101_h4_640x1600"
    ),
    "sparse4dv2_r50_256x704": Published(
        "val NDS .5384, mAP .4392; 20.3 FPS on an RTX 3090", V1, "sparse4dv2_r50_256x704"
    ),
    "sparse4dv2_r101_512x1408": Published(
        "val NDS .5939, mAP .5051; 8.4 FPS on an RTX 3090", V1, "sparse4dv2_r101_512x1408"
    ),
    "sparse4dv3_r50": Published(
        "val NDS .5637, mAP .4646, AMOTA .477; 19.8 FPS on an RTX 3090",
        V3,
        "sparse4dv3_r50_256x704",
    ),
    "sparse4dv3_r101_512x1408": Published(
        "val NDS .623, mAP .537, AMOTA .567; 8.2 FPS on an RTX 3090",
        V3,
        "sparse4dv3_r101_512x1408",
    ),
    "sparse4dv3_vov99_640x1600": Published(
        "test NDS .656, mAP .570, AMOTA .574", V3, "sparse4dv3_vov99_640x1600"
    ),
    "sparse4dv3_eva02l_640x1600_offline": Published(
        "test NDS .719, mAP .668, AMOTA .677", V3, "sparse4dv3_eva02l_640x1600_offline"
    ),
    "sparse4dv3_tiny": Published("ours; see the demo", "", "sparse4dv3_tiny"),
}


class Size(NamedTuple):
    """Parameters, floating-point operations of one frame, and bytes kept for its backward pass."""

    parameters: int
    image_flops: int
    head_flops: int
    kept: int


def size_of(config: Sparse4DConfig) -> Size:
    """Counted on the model without values."""
    config = config.replace(backbone=replace(config.backbone, checkpointing=True))
    with torch.device("meta"):
        model = s4d_core.Sparse4D(config, torch.zeros(config.num_anchors, 11)).to("meta")
        kept = _kept(model.train())
        model = model.eval().requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _frame(model)
    counts = {name: sum(v.values()) for name, v in counter.get_flop_counts().items()}
    image = counts["Sparse4D.backbone"] + counts["Sparse4D.neck"]
    parameters = sum(p.numel() for p in model.parameters())
    return Size(parameters, image, counts["Sparse4D"] - image, kept)


def _frame(model: s4d_core.Sparse4D) -> None:
    cameras, (height, width) = model.config.num_cameras, model.config.image.size
    model(
        images=torch.empty(1, cameras, 3, height, width),
        lidar2img=torch.empty(1, cameras, 4, 4),
        image_wh=torch.empty(1, cameras, 2),
        timestamp=torch.empty(1, dtype=torch.float64),
        lidar2global=torch.empty(1, 4, 4, dtype=torch.float64),
    )


def _kept(model: s4d_core.Sparse4D) -> int:
    """Bytes of all storages that a forward pass keeps for backward, weights apart."""
    storages: dict[int, tuple[int, Any]] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        if not isinstance(value, torch.nn.Parameter):
            storage = value.untyped_storage()
            storages[storage._cdata] = (storage.nbytes(), value)  # alive, so that ids stay unique
        return value

    def note_input(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        note(arguments[0])

    # A recomputed block keeps its input where the hooks on saved tensors do not see it.
    backbone: Any = model.backbone
    for stage in getattr(backbone, "stages", None) or [backbone.blocks]:
        for block in stage:
            block.register_forward_pre_hook(note_input)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        _frame(model)
    return sum(size for size, _ in storages.values())


def document(what: Callable[[str], str] | None = None) -> str:
    """The whole page; `what` replaces `model_line`."""
    what = what or model_line
    names = s4d_core.list_models()
    measured = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    lines = [
        "# Models",
        "",
        "Every model is a named configuration of the same parts: `s4d_core.get_config(name)`,",
        "`s4d_core.build_model(name)`, `s4d-train fit RECIPE`. This page is written by",
        "`tools/model_zoo/model_table.py`.",
        "",
        "## What they are",
        "",
        "GFLOP count a multiplication and an addition as two, for one frame of all cameras: of",
        "backbone and pyramid, and of the decoders. Sampling of image features is not in them.",
        "Kept: GB that the forward pass of one sample keeps for backward in float32, with the",
        "backbone's blocks recomputed; computed, not measured. Not in it: denoising queries, the",
        "work of one block, and 16 bytes per parameter for weights, gradients and AdamW.",
        "",
        "| model | backbone | input | instances, carried | queue | parameters | GFLOP | kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [what(name) for name in names]
    lines += [
        "",
        "## Published accuracy",
        "",
        "On nuScenes, by the authors of the models, with their code. Nothing here was trained on",
        "nuScenes by us.",
        "",
        "| model | published | source | recipe |",
        "|---|---|---|---|",
    ]
    for name in names:
        row = PUBLISHED[name]
        lines.append(f"| `{name}` | {row.result} | {row.source or '-'} | `{row.recipe}` |")
    lines += measured_lines(names, measured)
    return "\n".join(lines) + "\n"


def model_line(name: str) -> str:
    """A model's line of the first table."""
    config = s4d_core.get_config(name)
    size = size_of(config)
    height, width = config.image.size
    queue = "-"
    if config.queue is not None:
        queue = f"{config.queue.length} {config.queue.frames}"
    return (
        f"| `{name}` | {_backbone(config)} | {config.num_cameras} x {height} x {width} | "
        f"{config.num_anchors}, {config.num_temporal or '-'} | {queue} | "
        f"{size.parameters / 1e6:.1f} M | "
        f"{size.image_flops / 1e9:.0f} + {size.head_flops / 1e9:.0f} | {size.kept / 1e9:.1f} |"
    )


def _backbone(config: Sparse4DConfig) -> str:
    backbone = config.backbone
    if isinstance(backbone, s4d_core.VoVNetConfig):
        return "VoVNet-99 (eSE)"
    if isinstance(backbone, s4d_core.EvaConfig):
        return "EVA02-L, simple pyramid"
    if isinstance(backbone, s4d_core.TimmConfig):
        return f"timm/{backbone.name}"
    depth = 2 + sum(backbone.layers) * (3 if backbone.block == "bottleneck" else 2)
    text = f"ResNet-{depth}"
    if backbone.block == "basic":
        text += ", narrow"
    if backbone.style == "caffe":
        text += ", caffe style"
    return text + (", deformable" if any(backbone.deformable) else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = document()
    if args.check:
        same = DOCUMENT.is_file() and DOCUMENT.read_text() == text
        print("docs/models.md is " + ("up to date" if same else "not what this program writes"))
        return 0 if same else 1
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
