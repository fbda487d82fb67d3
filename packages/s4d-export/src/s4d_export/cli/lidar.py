"""``s4d-export lidar``: checkpoint and point clouds to an artifact."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s4d_runtime.lidar import VoxelRules

    from ..lidar import CalibrationFrame

__all__ = ["add_command"]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand. Imports nothing heavy."""
    command = commands.add_parser("lidar", help="write the sparse-engine file of a LiDAR encoder")
    command.add_argument(
        "checkpoint",
        help=".pth of CenterPoint or BEVFusion (spconv 1.x or 2.x), or folder of s4d_core.lidar",
    )
    command.add_argument(
        "-o", "--output", metavar="NAME.s4d|NAME.onnx", help="what to write (not for --sensitivity)"
    )
    command.add_argument(
        "--network",
        metavar="NAME",
        default="nusc_centerpoint_voxelnet_0075voxel",
        help="for a .pth: this, or bevfusion_lidar_0075voxel (%(default)s)",
    )
    command.add_argument(
        "--layout",
        choices=("auto", "spconv1", "spconv2"),
        default="auto",
        help="for a .pth: order of its weights; auto tells by their shapes",
    )
    command.add_argument("--precision", choices=("fp16", "int8"), default="fp16")
    command.add_argument(
        "--clouds",
        metavar="PATH",
        help="a point cloud or a folder of them (.bin, .npy, .tensor): for int8's ranges, and to "
        "compare the file with the checkpoint",
    )
    command.add_argument("--columns", type=int, default=5, help="values of a point in .bin (5)")
    command.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="type in .bin (float32)"
    )
    command.add_argument("--frames", type=int, default=300, help="at most this many clouds (300)")
    command.add_argument(
        "--method",
        choices=("mse", "percentile", "max"),
        default="mse",
        help="how int8 ranges are chosen: least squared error, percentile or largest (mse)",
    )
    command.add_argument(
        "--percentile", type=float, default=99.99, help="for that method (%(default)s)"
    )
    command.add_argument(
        "--half",
        metavar="LAYERS",
        help="layers that stay fp16 in int8, as conv0,conv1,add0; names as --sensitivity prints "
        "them (default: stem and first block)",
    )
    command.add_argument(
        "--voxel-rules",
        metavar="FILE",
        help="JSON of s4d_runtime.lidar.VoxelRules.to_json (default: CenterPoint's for nuScenes)",
    )
    command.add_argument(
        "--sensitivity",
        action="store_true",
        help="print what each layer costs alone in int8, and stop",
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    command.set_defaults(run=partial(_run, command))


def _run(command: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.output is None and not options.sensitivity:
        command.error("-o is wanted: the file to write")
    if options.frames < 1:
        command.error(f"--frames: expected at least 1, got {options.frames}")
    import torch
    from tqdm import tqdm

    from s4d_core.lidar import fold_batchnorm, load_encoder, read_encoder_checkpoint

    from ..errors import ExportError, QuantizationError
    from ..lidar import calibrate, export_encoder, sensitivity, verify_export
    from ..lidar.export import output_path

    if not options.sensitivity:
        output_path(options.output)  # before the work
    quantised = options.precision == "int8" or options.sensitivity
    if quantised and options.clouds is None:
        raise QuantizationError("int8 needs point clouds to calibrate on; give --clouds")

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ExportError("torch finds no CUDA device here; leave --device at cpu")
    encoder = (
        load_encoder(options.checkpoint)
        if Path(options.checkpoint).is_dir()
        else read_encoder_checkpoint(options.checkpoint, options.network, options.layout)
    )
    encoder = fold_batchnorm(encoder).to(options.device)
    rules = _rules(options, encoder.config.index_order)
    frames = _frames(options, rules, encoder.config.in_channels)
    progress = sys.stderr.isatty()
    ranges = None
    if quantised:
        half = None if options.half is None else [n for n in options.half.split(",") if n]
        clouds = tqdm(frames, desc="calibrate", unit="cloud", disable=not progress, leave=False)
        ranges = calibrate(encoder, clouds, options.method, options.percentile, half)
    if options.sensitivity:
        assert ranges is not None
        for row in sensitivity(encoder, ranges, frames[:8], progress):
            print(f"{row.layer:<8} {row.module:<28} {row.error:.3e}")
        return 0
    path = export_encoder(encoder, options.output, ranges, rules)
    print(f"{path}: {options.precision}, {path.stat().st_size / 1e6:.2f} MB")
    if frames:
        results = verify_export(encoder, path, frames[:8], device=options.device, progress=progress)
        worst = max(results, key=lambda r: r.relative)
        print(
            f"{options.precision} engine (first) against the checkpoint in float32 (second), worst "
            f"of {len(results)} clouds:\n{worst.table()}"
        )
    return 0


def _rules(options: argparse.Namespace, order: str) -> VoxelRules:
    from s4d_runtime.lidar import VoxelRules

    from ..errors import ExportError

    if options.voxel_rules is None:
        return VoxelRules(index_order="xyz" if order == "xyz" else "zyx")
    try:
        return VoxelRules.from_json(Path(options.voxel_rules).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"cannot read the voxel rules: {error}") from None


def _frames(
    options: argparse.Namespace, rules: VoxelRules, channels: int
) -> list[CalibrationFrame]:
    if options.clouds is None:
        return []
    from tqdm import tqdm

    from s4d_runtime.lidar.clouds import find_clouds, read_cloud

    from ..lidar import CalibrationFrame

    frames = []
    paths = find_clouds(options.clouds)[: options.frames]
    for path in tqdm(paths, desc="voxelise", unit="cloud", disable=None, leave=False):
        points = read_cloud(path, options.columns, options.dtype, channels)
        voxels = rules.voxelize(points)
        frames.append(CalibrationFrame(voxels.features, voxels.indices(rules.index_order)))
    return frames
