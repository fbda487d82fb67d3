"""Write an artifact: members stored, hashed, and renamed into place in one step."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..errors import ArtifactError, ArtifactMemberError
from ..files import atomic_write
from .container import MAX_MEMBERS, check_member_name
from .manifest import MANIFEST_NAME, Manifest, Member, check_manifest, encode_manifest

__all__ = ["write_artifact"]

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same input gives the same bytes


def write_artifact(
    path: str | os.PathLike[str],
    manifest: Manifest,
    members: Mapping[str, bytes | os.PathLike[str]],
) -> Path:
    """Write ``NAME.s4d``.

    Args:
        path: where to; an existing file is replaced when the new one is complete.
        manifest: its ``members`` table is filled in here; everything else is checked as it stands.
        members: file name inside the artifact to its bytes, or to the path of a file with them.
            ``model.onnx`` (or ``model.engine``, by ``manifest.kind``) must be among them.

    Returns:
        The path written.

    Raises:
        ManifestError: the manifest is not valid.
        ArtifactMemberError: a member's name is forbidden, or the model is missing.
        ArtifactError: a member's source file cannot be read.
    """
    if manifest.model_member not in members:
        raise ArtifactMemberError(
            f"expected a member {manifest.model_member!r} for kind {manifest.kind!r}, "
            f"got {sorted(members)}"
        )
    if len(members) >= MAX_MEMBERS:
        raise ArtifactMemberError(f"expected fewer than {MAX_MEMBERS} members, got {len(members)}")
    table: dict[str, Member] = {}
    for name, source in members.items():
        check_member_name(name)
        if name == MANIFEST_NAME:
            raise ArtifactMemberError(f"{MANIFEST_NAME} is written here; do not pass it")
        table[name] = _describe(name, source)
    complete = msgspec.structs.replace(manifest, members=table)
    check_manifest(complete)
    with atomic_write(path) as file:
        _write_zip(file, complete, members)
    return Path(path)


def _describe(name: str, source: bytes | os.PathLike[str]) -> Member:
    if isinstance(source, bytes):
        return Member(hashlib.sha256(source).hexdigest(), len(source))
    digest = hashlib.sha256()
    size = 0
    try:
        with Path(source).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise ArtifactError(f"cannot read the source of member {name!r}: {error}") from None
    return Member(digest.hexdigest(), size)


def _write_zip(
    file: BinaryIO, manifest: Manifest, members: Mapping[str, bytes | os.PathLike[str]]
) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST_NAME), encode_manifest(manifest))
        for name, source in members.items():
            if isinstance(source, bytes):
                archive.writestr(_entry(name), source)
                continue
            info = _entry(name)
            info.file_size = manifest.members[name].size
            with Path(source).open("rb") as stream, archive.open(info, "w") as target:
                shutil.copyfileobj(stream, target, 1 << 20)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_STORED
    info.external_attr = 0o100644 << 16
    info.create_system = 3
    return info
