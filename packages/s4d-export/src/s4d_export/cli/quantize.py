"""``s4d-export quantize``: a checkpoint or float32 artifact to an eight-bit artifact."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from s4d_core import Sparse4DConfig

    from ..int8.calibration import Calibration

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand. Imports nothing heavy."""
    command = commands.add_parser(
        "quantize", help="write an INT8 artifact: backbone and neck in eight bits, explicit Q/DQ"
    )
    command.add_argument("source", help="checkpoint folder, or an fp32 artifact NAME.s4d")
    command.add_argument("-o", "--output", metavar="NAME.s4d", help="not needed for --sensitivity")
    command.add_argument(
        "--data",
        metavar="DIR",
        help="frames to calibrate on: nuScenes layout, or an index of s4d-train convert",
    )
    command.add_argument(
        "--random", action="store_true", help="calibrate on random pictures: tests"
    )
    command.add_argument("--frames", type=int, default=64, help="at most this many (64)")
    command.add_argument("--method", choices=("mse", "entropy", "percentile", "max"), default="mse")
    command.add_argument("--percentile", type=float, default=99.99)
    command.add_argument(
        "--calibration",
        metavar="FILE",
        help="reuse the calibration in a JSON file or in an INT8 artifact of the same model",
    )
    command.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="nodes that keep their precision, as 'backbone.conv1*'",
    )
    command.add_argument(
        "--rest", choices=("fp16", "fp32"), default="fp16", help="precision of all other parts"
    )
    command.add_argument("--op", choices=("plugin", "standard"), default="plugin")
    command.add_argument("--name", help="name in the manifest (default: the output's file name)")
    command.add_argument(
        "--sensitivity",
        nargs="?",
        const="-",
        metavar="JSON",
        help="print what each layer costs alone, on up to 4 of the frames; also to a file",
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from ..artifact import build_manifest, check_destination, save_artifact
    from ..errors import QuantizationError
    from ..half.conversion import to_half
    from ..half.plan import DEFAULT_PLAN
    from ..int8.calibration import calibrate, load_calibration
    from ..int8.quantize import find_points, to_int8
    from .source import load_source
    from .text import tell

    if options.output is None and options.sensitivity is None:
        raise QuantizationError("expected -o NAME.s4d to write, or --sensitivity, got neither")
    path = check_destination(options.output) if options.output else None
    stored = load_calibration(options.calibration) if options.calibration else None
    if stored is None or options.sensitivity is not None:
        _check_frames(options)
    tell(f"quantize: loading {options.source}; a checkpoint is traced first")
    source = load_source(options.source, options.op)
    graph, config = source.graph, source.config
    points = find_points(graph, options.exclude)
    if stored is None:
        tensors = {point.tensor for point in find_points(graph)}  # exclusions may change later
        stored = calibrate(
            graph,
            tensors,
            config,
            _progress(_images(options, config, options.frames), options.frames),
            options.method,
            options.percentile,
            Path(options.data).name if options.data else "random pictures",
        )
    if options.sensitivity is not None:
        _report(options, graph, stored, config)
    if path is None:
        return 0
    base = to_half(graph) if options.rest == "fp16" else graph
    quantised = to_int8(base, stored, options.exclude, reference=graph)
    manifest = build_manifest(config, options.name or path.stem, source.op, "int8")
    members = {"calibration.json": stored.to_json().encode()}
    if options.rest == "fp16":
        members["precision_plan.json"] = DEFAULT_PLAN.to_json().encode()
    save_artifact(path, quantised, manifest, members)
    layers = sum(1 for point in points if point.weight)
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {layers} convolutions in int8, the rest in "
        f"{options.rest}; {stored.method} over {stored.frames} frames of {stored.source}"
    )
    return 0


def _check_frames(options: argparse.Namespace) -> None:
    from ..errors import QuantizationError

    if bool(options.data) == options.random:
        raise QuantizationError(
            "expected frames to calibrate on: give either --data DIR or --random"
        )
    if options.frames < 1:
        raise QuantizationError(f"expected --frames of at least 1, got {options.frames}")
    if options.data:  # before minutes of tracing
        folder = Path(options.data)
        if not (folder / "index.json").is_file() and not any(folder.glob("*/sample_data.json")):
            raise QuantizationError(
                f"expected a data set in nuScenes layout or an index, {options.data!r} is neither"
            )


def _images(
    options: argparse.Namespace, config: Sparse4DConfig, count: int
) -> Iterator[NDArray[np.uint8]]:
    from ..int8.images import dataset_images, random_images

    if options.random:
        return random_images(config, count)
    return dataset_images(config, options.data, count)


def _progress(images: Iterator[NDArray[np.uint8]], count: int) -> Iterator[NDArray[np.uint8]]:
    from tqdm import tqdm

    yield from tqdm(images, desc="calibrate", unit="frame", total=count, disable=None, leave=False)


def _report(
    options: argparse.Namespace,
    graph: onnx.ModelProto,
    calibration: Calibration,
    config: Sparse4DConfig,
) -> None:
    from ..int8.sensitivity import format_costs, sensitivity
    from .text import write_text

    costs = sensitivity(
        graph,
        calibration,
        config,
        _images(options, config, min(4, options.frames)),
        options.exclude,
        progress=sys.stderr.isatty(),
    )
    print(format_costs(costs))
    if options.sensitivity != "-":
        write_text(options.sensitivity, json.dumps([vars(cost) for cost in costs], indent=1) + "\n")
