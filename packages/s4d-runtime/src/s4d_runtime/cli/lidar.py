"""``s4d-run lidar``: encode point clouds, with timings, tensors and pictures."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from ..lidar import SparseEngine

__all__ = ["add_arguments", "inspect", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a point cloud, or a folder of .bin, .npy, .tensor files")
    parser.add_argument("--model", required=True, help="NAME.s4d or an ONNX file (libspconv)")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "fp16", "int8"), help="(auto)"
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="(auto: CUDA if it is there)",
    )
    parser.add_argument("--columns", type=int, default=5, help="values of a point in .bin (5)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="type in .bin (float32)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: all)")
    parser.add_argument("--out", metavar="FOLDER", help="write NAME.tensor and NAME.png here")
    parser.add_argument("--no-pictures", action="store_true", help="with --out: tensors only")
    parser.add_argument("--json", metavar="FILE", help="also write the timings as JSON")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..lidar import SparseEngine
    from ..lidar.clouds import find_clouds

    clouds = find_clouds(args.path)
    engine = SparseEngine.load(args.model, args.precision, args.device, threads=args.threads)
    frames = []
    for cloud in tqdm(clouds, unit="cloud", disable=None, leave=False):
        frames.append(_encode(engine, cloud, args))
    report = {
        "model": str(args.model),
        "precision": engine.precision,
        "device": engine.device,
        "weights_bytes": engine.weight_bytes,
        "frames": frames,
    }
    if args.json:
        from ..files import write_bytes

        write_bytes(args.json, json.dumps(report, indent=2).encode() + b"\n")
    print(_table(report), end="")
    return 0


def _encode(engine: SparseEngine, cloud: Path, args: argparse.Namespace) -> dict[str, Any]:
    from pathlib import Path

    import numpy as np

    from ..lidar import write_tensor
    from ..lidar.clouds import read_cloud

    points = read_cloud(cloud, args.columns, args.dtype, engine.graph.in_channels)
    start = time.perf_counter()
    features, indices, _ = engine.voxelize(points)
    middle = time.perf_counter()
    result = engine(features, indices)
    end = time.perf_counter()
    dense = np.asarray(result)
    if args.out:
        folder = Path(args.out)
        write_tensor(folder / f"{cloud.stem}.tensor", dense)
        if not args.no_pictures:
            _draw(engine, dense[0], indices.shape[0], cloud.name, Path(args.model).stem).save(
                folder / f"{cloud.stem}.png"
            )
    return {
        "name": cloud.name,
        "points": len(points),
        "voxels": indices.shape[0],
        "voxelize_ms": (middle - start) * 1e3,
        "encode_ms": (end - middle) * 1e3,
        "shape": list(dense.shape),
    }


def _draw(engine: SparseEngine, dense: Any, voxels: int, name: str, model: str) -> Any:
    from ..lidar.picture import bev_picture

    made = f"{model}, {engine.precision} on {engine.device}, {voxels} voxels"
    return bev_picture(dense, engine.voxel_rules, name, made)


def _table(report: dict[str, Any]) -> str:
    frames = report["frames"]
    lines = [
        f"{report['model']}: {report['precision']} on {report['device']}, {len(frames)} cloud"
        f"{'' if len(frames) == 1 else 's'}"
    ]
    for key, unit in (("points", ""), ("voxels", ""), ("voxelize_ms", " ms"), ("encode_ms", " ms")):
        values = sorted(frame[key] for frame in frames)
        middle, high = values[len(values) // 2], values[min(len(values) - 1, len(values) * 9 // 10)]
        lines.append(
            f"  {key.removesuffix('_ms'):<10} median {middle:>10.6g}{unit}  "
            f"p90 {high:>10.6g}{unit}  max {values[-1]:>10.6g}{unit}"
        )
    return "\n".join(lines) + "\n"


def inspect(args: argparse.Namespace) -> int:
    """What ``s4d-run inspect`` prints of a LiDAR artifact."""
    from pathlib import Path

    import msgspec

    from ..lidar.artifact import load_graph, read_lidar_artifact
    from ..lidar.nodes import ConvNode

    manifest, _ = read_lidar_artifact(args.artifact)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode())
        return 0
    graph = load_graph(args.artifact)
    convolutions = [node for node in graph.nodes if isinstance(node, ConvNode)]
    quantised = sum(node.precision == "int8" for node in convolutions)
    rules = manifest.voxel_rules
    grid = " x ".join(map(str, graph.grid_shape))
    lines = [
        f"name         {manifest.name}, format {manifest.format}, made {manifest.created}",
        f"graph        lidar, {manifest.precision}, {len(graph.nodes)} nodes, "
        f"{len(convolutions)} convolutions, {quantised} of them int8",
        f"grid         {grid} ({rules.index_order}), {graph.in_channels} values a voxel",
        f"voxels       from {rules.low} to {rules.high}, size {rules.size}, at most "
        f"{rules.max_points} points each, {rules.max_voxels or 'any number of'} voxels",
        "versions     " + ", ".join(f"{k} {v}" for k, v in sorted(manifest.versions.items())),
    ]
    for name, member in manifest.members.items():
        lines.append(
            f"member       {name:<18} {member.size / 1e6:.2f} MB  sha256 {member.sha256[:16]}..."
        )
    print(f"{Path(args.artifact).name}: sound (structure, manifest, sizes and hashes)")
    for line in lines:
        print(f"  {line}")
    return 0
