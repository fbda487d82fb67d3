"""An ONNX artifact to a TensorRT engine artifact, through TensorRT's Python API (10 and 11).

The work is done by ``_trt_worker`` in a process of its own: a parser that meets a node it does
not know may end the process, and a build takes gigabytes that should be given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from s4d_runtime.artifact import read_artifact, write_artifact

from ..artifact import check_destination
from ..errors import EngineBuildError, UnwritableOutputError
from .targets import TARGETS, Target, find_target

__all__ = ["BuildOptions", "build_engine"]


@dataclass(frozen=True)
class BuildOptions:
    """What TensorRT is asked for. Precision is not among it: the graph is typed.

    Attributes:
        target: a name of ``targets.TARGETS`` that this machine must be; None: whatever it is.
        workspace_mib: upper limit of scratch memory while building, MiB; None: the target's.
        timing_cache: file to read measured kernels from and write them to; None: no cache.
        version_compatible: runs with later TensorRT releases too (10 on 11), at some speed.
        hardware_compatible: runs on every GPU from Ampere on, at some speed.
        embed_plugin: put the operator library into the engine; the target then needs no copy.
    """

    target: str | None = None
    workspace_mib: int | None = None
    timing_cache: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    embed_plugin: bool = False


def build_engine(
    artifact: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: BuildOptions | None = None,
) -> dict[str, Any]:
    """Build an engine for the GPU of this machine and write it as an artifact.

    The engine artifact has the members ``model.engine`` and ``build_log.json``: TensorRT's version
    and warnings, and every layer with its operation and the types of its results.

    Returns:
        The build log.

    Raises:
        EngineBuildError: no TensorRT here, no GPU, or TensorRT refused the graph.
        MissingLibraryError: the artifact needs the plugin library, which is not installed.
        UnwritableOutputError: the result cannot be written; nothing is left behind.
    """
    path = check_destination(output)
    options = options or BuildOptions()
    target = find_target(options.target) if options.target else TARGETS["x86"]
    with read_artifact(artifact) as opened:
        manifest = opened.manifest
        if manifest.kind != "onnx":
            raise EngineBuildError(
                f"expected an artifact with an ONNX graph, {manifest.name!r} holds an engine"
            )
        graph = opened.read_model()
        kept = {name: opened.read(name) for name in opened.names() if name != manifest.model_member}
    plugin = None
    if manifest.op == "plugin":
        from s4d_ops import library_path

        plugin = str(library_path("tensorrt"))
    with tempfile.TemporaryDirectory(prefix="s4d-engine-") as folder:
        engine, log = _run_worker(Path(folder), graph, plugin, options, target)
        described = msgspec.structs.replace(
            manifest,
            kind="engine",
            versions={**manifest.versions, "tensorrt": log["tensorrt"]},
        )
        kept["build_log.json"] = json.dumps(log, indent=1).encode()
        try:
            write_artifact(path, described, {**kept, "model.engine": engine})
        except OSError as error:
            raise UnwritableOutputError(
                f"cannot write {str(path)!r}: {error.strerror or error}; nothing was left behind"
            ) from None
    return log


def _run_worker(
    folder: Path, graph: bytes, plugin: str | None, options: BuildOptions, target: Target
) -> tuple[Path, dict[str, Any]]:
    (folder / "model.onnx").write_bytes(graph)
    order = {"plugin": plugin, **asdict(options)}
    order["workspace_mib"] = options.workspace_mib or target.workspace_mib
    order["majors"] = target.tensorrt
    if options.timing_cache is not None:
        order["timing_cache"] = str(Path(options.timing_cache).resolve())
    (folder / "order.json").write_text(json.dumps(order))
    command = [sys.executable, "-m", "s4d_export.engine._trt_worker", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = folder / "answer.json"
    if not answer.is_file():
        last = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise EngineBuildError(
            f"TensorRT ended its process (exit status {done.returncode}) without an engine"
            + (f": {last[-1][:200]}" if last else "")
            + "; an operator that it does not know is the usual cause"
        )
    log: dict[str, Any] = json.loads(answer.read_text())
    if "error" in log:
        raise EngineBuildError(str(log["error"]))
    return folder / "model.engine", log
