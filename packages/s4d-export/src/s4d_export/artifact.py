"""From a graph to an artifact: the manifest, and a write that leaves nothing half done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import onnx

from s4d_core import Sparse4DConfig
from s4d_runtime.artifact import Manifest, Preprocessing, Thresholds, write_artifact

from ._version import __version__
from .errors import UnwritableOutputError
from .graph.check import OPSET
from .graph.contract import graph_contract
from .graph.tracing import Op

__all__ = ["Precision", "build_manifest", "check_destination", "save_artifact"]

Precision = Literal["fp32", "fp16", "int8"]


def build_manifest(
    config: Sparse4DConfig, name: str, op: Op, precision: Precision, created: str | None = None
) -> Manifest:
    """Everything a runtime must know about the exported model.

    Args:
        created: ISO 8601, UTC; default now, or the time in ``SOURCE_DATE_EPOCH``.
    """
    contract = graph_contract(config)
    height, width = config.image.size
    return Manifest(
        name=name,
        created=created or _now(),
        versions=_versions(),
        model=config.to_dict(),
        class_names=tuple(config.class_names),
        preprocessing=Preprocessing(
            image_size=(height, width),
            resize_filter=config.image.resize_filter,
            camera_names=tuple(config.camera_names),
        ),
        inputs=contract.inputs,
        outputs=contract.outputs,
        state=contract.state,
        thresholds=Thresholds(
            max_time_interval=config.max_time_interval,
            default_time_interval=config.default_time_interval,
        ),
        precision=precision,
        op=op,
        opset=OPSET,
    )


def check_destination(path: str | os.PathLike[str]) -> Path:
    """Say early, before minutes of work, that a path cannot be written.

    Raises:
        UnwritableOutputError: its folder is absent or read-only, or the path is a folder.
    """
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise UnwritableOutputError(f"expected a file name to write, got the folder {str(path)!r}")
    if not folder.is_dir():
        raise UnwritableOutputError(f"the folder {str(folder)!r} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise UnwritableOutputError(f"the folder {str(folder)!r} is not writable")
    return target


def save_artifact(
    path: str | os.PathLike[str],
    model: onnx.ModelProto,
    manifest: Manifest,
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    """Write ``NAME.s4d`` with ``model.onnx`` and, if given, further members.

    Raises:
        UnwritableOutputError: no space, no permission; no partial file is left.
    """
    target = check_destination(path)
    members = {"model.onnx": model.SerializeToString(deterministic=True), **(extra or {})}
    try:
        return write_artifact(target, manifest, members)
    except OSError as error:
        raise UnwritableOutputError(
            f"cannot write {str(target)!r}: {error.strerror or error}; nothing was left behind"
        ) from None


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = (
        datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else datetime.now(timezone.utc)
    )
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _versions() -> dict[str, str]:
    versions = {"s4d-export": __version__}
    for package in ("s4d-core", "s4d-ops", "s4d-runtime", "torch", "onnx", "onnxscript"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a source tree on the path, not installed
            module = __import__(package.replace("-", "_"))
            versions[package] = str(getattr(module, "__version__", "unknown"))
    return versions
