"""Open an artifact; nothing of it reaches an engine before all of it is checked."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import (
    ArtifactError,
    ArtifactHashError,
    ArtifactMemberError,
    ArtifactStructureError,
)
from .container import PARSE_ERRORS, open_container
from .manifest import MANIFEST_NAME, Manifest, decode_manifest

__all__ = ["Artifact", "read_artifact"]

_MAX_MANIFEST = 16 << 20
_CHUNK = 1 << 20


class Artifact:
    """An open, checked artifact. Close it, or use it in a ``with`` block.

    Attributes:
        path: where it lies.
        manifest: what it says.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        archive: zipfile.ZipFile,
        file: BinaryIO,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._archive = archive
        self._file = file

    def names(self) -> list[str]:
        """The members beside the manifest."""
        return list(self.manifest.members)

    def read(self, name: str) -> bytes:
        """The bytes of a member, checked once more, so that they are the ones declared.

        Raises:
            ArtifactMemberError: no such member.
            ArtifactHashError: the file changed since it was opened.
        """
        member = self.manifest.members.get(name)
        if member is None:
            raise ArtifactMemberError(
                f"{self.path.name} has no member {name!r}; it has {', '.join(self.names())}"
            )
        try:
            data = self._archive.read(name)
        except PARSE_ERRORS as error:
            raise ArtifactHashError(f"{self.path.name}: {name!r} cannot be read: {error}") from None
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise ArtifactHashError(
                f"{self.path.name}: {name!r} changed on disk while it was in use"
            )
        return data

    def read_model(self) -> bytes:
        """The network: ``model.onnx`` or ``model.engine``."""
        return self.read(self.manifest.model_member)

    def close(self) -> None:
        self._archive.close()
        self._file.close()

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Open ``NAME.s4d`` and check all of it: structure, names, manifest, sizes and hashes.

    Nothing is unpacked to disk.

    Raises:
        ArtifactError: the file cannot be opened; else one of its subclasses:
        ArtifactStructureError, ArtifactMemberError, ArtifactFormatError, ManifestError,
        ArtifactHashError.
    """
    source = Path(path)
    try:
        file = source.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"cannot open the artifact {str(source)!r}: {reason}") from None
    try:
        archive, members = open_container(file)
        manifest = _read_manifest(archive, members)
        _check_members(archive, members, manifest)
    except ArtifactError as error:
        file.close()
        raise type(error)(f"{source.name}: {error}") from None
    except BaseException:
        file.close()
        raise
    return Artifact(source, manifest, archive, file)


def _read_manifest(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> Manifest:
    info = members.get(MANIFEST_NAME)
    if info is None:
        raise ArtifactMemberError(f"{MANIFEST_NAME} is missing; this is not an s4d artifact")
    if info.file_size > _MAX_MANIFEST:
        raise ArtifactStructureError(
            f"expected {MANIFEST_NAME} of at most {_MAX_MANIFEST} bytes, got {info.file_size}"
        )
    try:
        data = archive.read(info)
    except PARSE_ERRORS as error:
        raise ArtifactStructureError(f"{MANIFEST_NAME} cannot be read: {error}") from None
    return decode_manifest(data)


def _check_members(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], manifest: Manifest
) -> None:
    declared = {*manifest.members}
    present = {*members} - {MANIFEST_NAME}
    if manifest.model_member not in declared:
        raise ArtifactMemberError(
            f"the manifest declares kind {manifest.kind!r} but no member {manifest.model_member!r}"
        )
    if missing := sorted(declared - present):
        raise ArtifactMemberError(f"declared but not there: {', '.join(map(repr, missing))[:200]}")
    if extra := sorted(present - declared):
        raise ArtifactMemberError(f"there but not declared: {', '.join(map(repr, extra))[:200]}")
    for name, member in manifest.members.items():
        size = members[name].file_size
        if size != member.size:
            raise ArtifactHashError(f"expected {name!r} to have {member.size} bytes, got {size}")
        if _digest(archive, members[name]) != member.sha256:
            raise ArtifactHashError(
                f"the SHA-256 of {name!r} is not the declared one; the file was altered or damaged"
            )


def _digest(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    digest = hashlib.sha256()
    try:
        with archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except PARSE_ERRORS as error:
        raise ArtifactHashError(f"{info.filename!r} cannot be read whole: {error}") from None
    return digest.hexdigest()
