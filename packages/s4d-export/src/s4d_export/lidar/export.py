"""Write the file, and prove that the engine computes what the encoder does."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import onnx
import torch
from tqdm import tqdm

import s4d_core
import s4d_ops
from s4d_core.lidar import SparseEncoder
from s4d_runtime.lidar import (
    Comparison,
    LidarManifest,
    SparseEngine,
    VoxelRules,
    compare,
    write_lidar_artifact,
)

from .._version import __version__
from ..errors import ExportError, VerificationError
from .calibration import CalibrationFrame
from .quantize import Ranges
from .writer import encoder_to_onnx

__all__ = ["export_encoder", "output_path", "verify_export"]


def output_path(path: str | os.PathLike[str]) -> Path:
    """The path of a file to write.

    Raises:
        ExportError: its name does not say what to write.
    """
    target = Path(path)
    if target.suffix not in (".s4d", ".onnx"):
        raise ExportError(f"expected a name that ends in .s4d or .onnx, got {target.name!r}")
    return target


def export_encoder(
    encoder: SparseEncoder,
    path: str | os.PathLike[str],
    ranges: Ranges | None = None,
    voxel_rules: VoxelRules | None = None,
    name: str | None = None,
) -> Path:
    """Write ``NAME.s4d`` (with manifest and hashes) or ``NAME.onnx``, by the suffix.

    Args:
        encoder: folded (``fold_batchnorm``).
        ranges: from ``calibrate`` or ``ranges_of``: an int8 file. Without: fp16.
        voxel_rules: how points become voxels on board; default: CenterPoint's for nuScenes, in the
            encoder's index order.

    Raises:
        ExportError: another suffix, batch normalisation left, or weights that half cannot hold.
        QuantizationError: a layer without a usable range.
    """
    target = output_path(path)
    order = encoder.config.index_order
    rules = voxel_rules or VoxelRules(index_order=order)
    if rules.index_order != order:
        raise ExportError(f"the encoder takes {order} rows, the voxel rules give another order")
    model = encoder_to_onnx(encoder, ranges, {"s4d.voxel_rules": rules.to_json()})
    data = model.SerializeToString(deterministic=True)
    if target.suffix == ".onnx":
        part = target.with_name(target.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(target)
        return target
    manifest = LidarManifest(
        name=name or target.stem,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions={
            "s4d-export": __version__,
            "s4d-core": s4d_core.__version__,
            "s4d-ops": s4d_ops.__version__,
            "onnx": onnx.__version__,
        },
        model=encoder.config.to_dict(),
        precision="fp16" if ranges is None else "int8",
        voxel_rules=rules,
    )
    return write_lidar_artifact(target, manifest, {"model.onnx": data})


def verify_export(
    encoder: SparseEncoder,
    path: str | os.PathLike[str],
    frames: list[CalibrationFrame],
    precision: str = "auto",
    device: str = "auto",
    progress: bool = False,
) -> list[Comparison]:
    """Run the file in the engine and compare each frame's map with the encoder's in float32.

    Args:
        device: of the engine; the encoder runs where it is.
        progress: show a bar.

    Raises:
        VerificationError: no frames.
    """
    if not frames:
        raise VerificationError("expected at least one frame to compare, got none")
    engine = SparseEngine.load(path, precision, device)
    results = []
    for frame in tqdm(frames, desc="verify", unit="cloud", disable=not progress, leave=False):
        with torch.no_grad():
            want = encoder(*frame.on(encoder), frame.batch_size).cpu().numpy()
        got = engine(frame.features, frame.indices, None, frame.batch_size)
        results.append(compare(got, want))
    return results
