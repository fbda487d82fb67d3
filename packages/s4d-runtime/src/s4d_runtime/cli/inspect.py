"""``s4d-run inspect``: is this artifact sound, and what is in it?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..artifact import Manifest

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", help="NAME.s4d")
    parser.add_argument("--json", action="store_true", help="print the whole manifest as JSON")


def run(args: argparse.Namespace) -> int:
    from ..artifact import read_artifact
    from ..lidar.artifact import is_lidar_artifact

    if is_lidar_artifact(args.artifact):
        from .lidar import inspect

        return inspect(args)
    with read_artifact(args.artifact) as artifact:
        manifest = artifact.manifest
        name = artifact.path.name
    if args.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode())
        return 0
    print(f"{name}: sound (structure, manifest, sizes and hashes)")
    for line in _lines(manifest):
        print(f"  {line}")
    return 0


def _lines(manifest: Manifest) -> list[str]:
    prepared = manifest.preprocessing
    limits = manifest.thresholds
    height, width = prepared.image_size
    lines = [
        f"name         {manifest.name}, format {manifest.format}, made {manifest.created}",
        f"graph        {manifest.kind}, opset {manifest.opset}, {manifest.precision}, "
        f"operator: {manifest.op}",
        f"images       {height} x {width}, {prepared.resize_filter}, "
        f"{len(prepared.camera_names)} cameras: {', '.join(prepared.camera_names)}",
        f"classes      {len(manifest.class_names)}: {', '.join(manifest.class_names)}",
        f"time         reset after {limits.max_time_interval:g} s, "
        f"default step {limits.default_time_interval:g} s",
        f"tracking     threshold {limits.tracking_threshold:g}",
        "versions     " + ", ".join(f"{k} {v}" for k, v in sorted(manifest.versions.items())),
    ]
    sources = manifest.state
    for label, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            fed = f"  <- {sources[spec.name]}" if spec.name in sources else ""
            shape = ", ".join(map(str, spec.shape))
            lines.append(f"{label:<12} {spec.name:<18} {spec.dtype:<8} ({shape}){fed}")
    for name, member in manifest.members.items():
        lines.append(
            f"member       {name:<18} {member.size / 1e6:.2f} MB  sha256 {member.sha256[:16]}..."
        )
    return lines
