"""LiDAR artifacts ``NAME.s4d``: one zip file with ``manifest.json`` and ``model.onnx``.

The container and its checks are those of camera artifacts; the manifest is smaller, since the
graph itself says its precision, ranges and grid. Its ``kind`` is "lidar".
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..artifact import ARTIFACT_FORMAT, Member
from ..artifact.container import PARSE_ERRORS, open_container
from ..errors import (
    ArtifactError,
    ArtifactFormatError,
    ArtifactHashError,
    ArtifactMemberError,
    ManifestError,
)
from ..files import atomic_write
from .errors import OnnxFileError
from .graph import build_graph
from .nodes import LidarGraph
from .onnx_file import parse_onnx, read_onnx
from .voxels import VoxelRules

__all__ = [
    "LidarManifest",
    "is_lidar_artifact",
    "load_graph",
    "read_lidar_artifact",
    "write_lidar_artifact",
]

MANIFEST, MODEL = "manifest.json", "model.onnx"


class LidarManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a LiDAR artifact says about itself. ``members`` is filled in by the writer."""

    name: str
    created: str
    versions: dict[str, str]
    model: dict[str, Any]
    precision: Literal["fp16", "int8"]
    voxel_rules: VoxelRules
    kind: Literal["lidar"] = "lidar"
    members: dict[str, Member] = {}
    format: int = ARTIFACT_FORMAT


def write_lidar_artifact(
    path: str | os.PathLike[str], manifest: LidarManifest, members: dict[str, bytes]
) -> Path:
    """Write the artifact; it appears under its name when complete.

    Args:
        members: file name to bytes; ``model.onnx`` must be among them.

    Raises:
        ArtifactMemberError: ``model.onnx`` is missing.
        OnnxFileError, LidarGraphError: the model is not one that the engine runs.
    """
    if MODEL not in members or MANIFEST in members:
        raise ArtifactMemberError(f"expected a member {MODEL} and no {MANIFEST}")
    build_graph(parse_onnx(members[MODEL]))
    table = {n: Member(hashlib.sha256(d).hexdigest(), len(d)) for n, d in members.items()}
    complete = msgspec.structs.replace(manifest, members=table)
    head = msgspec.json.format(msgspec.json.encode(complete), indent=1) + b"\n"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: head, **members}.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o100644 << 16
            info.create_system = 3
            archive.writestr(info, data)
    return Path(path)


def read_lidar_artifact(
    path: str | os.PathLike[str],
) -> tuple[LidarManifest, dict[str, bytes]]:
    """The manifest and all members, every size and hash checked.

    Raises:
        ArtifactError: one of its subclasses says what is wrong.
    """
    name = Path(path).name
    try:
        with Path(path).open("rb") as file:
            archive, infos = open_container(file)
            with archive:
                data = {n: archive.read(info) for n, info in infos.items()}
    except ArtifactError as error:
        raise type(error)(f"{name}: {error}") from None
    except PARSE_ERRORS as error:
        raise ArtifactError(f"{name} cannot be read: {error}") from None
    if MANIFEST not in data:
        raise ArtifactMemberError(f"{name}: {MANIFEST} is missing; this is not an s4d artifact")
    manifest = _decode(name, data.pop(MANIFEST))
    if set(manifest.members) != set(data) or MODEL not in data:
        raise ArtifactMemberError(f"{name}: the members are not those that the manifest declares")
    for member, content in data.items():
        declared = manifest.members[member]
        if (hashlib.sha256(content).hexdigest(), len(content)) != (declared.sha256, declared.size):
            raise ArtifactHashError(
                f"{name}: {member} is not what the manifest declares; the file was altered"
            )
    return manifest, data


def is_lidar_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether the manifest says so. False also for what is no artifact at all."""
    try:
        with Path(path).open("rb") as file:
            archive, infos = open_container(file)
            with archive:
                head = msgspec.json.decode(archive.read(infos[MANIFEST]))
    except (ArtifactError, KeyError, RecursionError, msgspec.MsgspecError, *PARSE_ERRORS):
        return False
    return isinstance(head, dict) and head.get("kind") == "lidar"


def _decode(name: str, data: bytes) -> LidarManifest:
    try:
        head = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"{name}: the manifest is not a JSON object: {error}") from None
    if head.get("format") != ARTIFACT_FORMAT:
        raise ArtifactFormatError(
            f"{name}: expected artifact format {ARTIFACT_FORMAT}, got {head.get('format')!r:.40}"
        )
    if head.get("kind") != "lidar":
        raise ManifestError(
            f"{name}: expected an artifact of kind 'lidar', got {head.get('kind')!r:.40}; "
            "camera artifacts go to Pipeline.load"
        )
    try:
        return msgspec.json.decode(data, type=LidarManifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ManifestError(f"{name}: the manifest does not fit its format: {error}") from None


def load_graph(path: str | os.PathLike[str]) -> LidarGraph:
    """The checked graph of an artifact or of an ONNX file, told apart by the first bytes.

    An artifact's voxel rules are put into the graph's metadata.
    """
    try:
        with Path(path).open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise OnnxFileError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None
    if not zipped and Path(path).suffix != ".s4d":
        return build_graph(read_onnx(path))
    manifest, members = read_lidar_artifact(path)
    graph = parse_onnx(members[MODEL])
    graph.metadata["s4d.voxel_rules"] = manifest.voxel_rules.to_json()
    return build_graph(graph)
