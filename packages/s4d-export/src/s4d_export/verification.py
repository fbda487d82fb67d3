"""Does the artifact compute what the checkpoint computes? A roll-out of both, compared."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import onnx
from tqdm import tqdm

from s4d_core import Sparse4D
from s4d_runtime.artifact import Manifest, read_artifact
from s4d_runtime.backends import BACKENDS

from .comparison import TOLERANCES, Comparison, Tolerance
from .divergence import LIMITS, first_divergence
from .errors import VerificationError
from .frames import GraphFrame
from .inspection import load_graph
from .rollout import EngineRunner, Recorded, Runner, TorchRunner, record_feeds
from .stages import compare_stages
from .tracing import export_graph

__all__ = ["examine", "format_examination", "format_result", "verify"]


def verify(
    model: Sparse4D,
    artifact: str | os.PathLike[str],
    frames: Iterable[GraphFrame],
    backend: str = "auto",
    threads: int = 0,
    tolerance: Tolerance | None = None,
    progress: bool = False,
    reference: Runner | None = None,
) -> dict[str, Any]:
    """Run the model in torch and the artifact in the runtime's engine, frame by frame.

    Each side feeds its own state back; nothing is handed from one to the other.

    Args:
        model: the loaded checkpoint, the reference (float32).
        artifact: path of ``NAME.s4d``.
        frames: see ``frames``; reset frames restart the tracks on both sides.
        tolerance: default by the artifact's precision.
        reference: what stands for the model instead of torch, such as ``rollout.Recorded``.

    Returns:
        ``Comparison.result`` with names and milliseconds of both sides; ``passed`` is the verdict.

    Raises:
        VerificationError: the artifact was made from another configuration.
        ArtifactError, BackendError: the artifact does not load.
    """
    with read_artifact(artifact) as opened:
        manifest = opened.manifest
        _check_same_model(model, manifest)
        engine = EngineRunner(opened, backend, threads)
    torch_side = reference or TorchRunner(model)
    comparison = Comparison(tolerance or TOLERANCES[manifest.precision])
    try:
        for frame in tqdm(frames, desc="verify", unit="frame", disable=not progress):
            if frame.reset:
                comparison.reset()
            comparison.add(torch_side.step(frame), engine.step(frame))
    finally:
        engine.close()
    result = comparison.result()
    result.update(
        artifact=manifest.name,
        precision=manifest.precision,
        op=manifest.op,
        reference=torch_side.name,
        candidate=engine.name,
        milliseconds={side.name: _median(side.milliseconds) for side in (torch_side, engine)},
    )
    return result


def examine(
    model: Sparse4D,
    artifacts: Sequence[str | os.PathLike[str]],
    frames: Iterable[GraphFrame],
    backends: Sequence[str] = ("auto",),
    threads: int = 0,
    stages: bool = False,
    divergence: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """One roll-out in torch against every artifact on every engine, and what lies between.

    Args:
        backends: names of the runtime's engines; "all" stands for those that can run an artifact
            here. An artifact runs on those of the named ones that fit its kind.
        stages: compare the results of the model's parts too (``stages.compare_stages``).
        divergence: look for the first tensor of each ONNX artifact that is not what the checkpoint
            computes (``divergence.first_divergence``); exports the checkpoint for it.

    Returns:
        ``passed``, and per artifact and engine one entry of ``runs`` as ``verify`` gives it, with
        ``stages`` and ``divergence`` in the first of each artifact.

    Raises:
        VerificationError: as ``verify``, or an artifact that none of the engines can run.
    """
    # What cannot be run is refused before the roll-out in torch, which takes long.
    engines = [_engines(model, artifact, backends) for artifact in artifacts]
    given = list(frames)
    reference = Recorded(TorchRunner(model), given, progress)
    runs: list[dict[str, Any]] = []
    for artifact, (names, manifest) in zip(artifacts, engines, strict=True):
        first = len(runs)
        for name in names:
            reference.rewind()
            runs.append(
                verify(
                    model,
                    artifact,
                    given,
                    name,
                    threads,
                    progress=progress,
                    reference=reference,
                )
            )
        if manifest.kind != "onnx" or not (stages or divergence):
            continue
        graph = load_graph(artifact)[0]
        if stages:
            tolerance = TOLERANCES[manifest.precision]
            runs[first]["stages"] = compare_stages(model, graph, given, tolerance)
        if divergence:
            runs[first]["divergence"] = _diverging(model, graph, manifest, given)
    return {"passed": all(run["passed"] for run in runs), "runs": runs}


def _engines(
    model: Sparse4D, artifact: str | os.PathLike[str], wanted: Sequence[str]
) -> tuple[list[str], Manifest]:
    """Names of the wanted engines for an artifact of the model, and its manifest."""
    with read_artifact(artifact) as opened:
        manifest = opened.manifest
    _check_same_model(model, manifest)
    if "all" in wanted:
        able = [backend.name for backend in BACKENDS if backend.why_not(manifest) is None]
        if not able:
            raise VerificationError(
                f"no engine here can run {os.fspath(artifact)!r}: "
                + "; ".join(f"{b.name}: {b.why_not(manifest)}" for b in BACKENDS)
            )
        return able, manifest
    names = {"auto", *(b.name for b in BACKENDS), *(b.name.split("-")[0] for b in BACKENDS)}
    for name in wanted:
        if name not in names:
            known = ", ".join(("all", "auto", *(b.name for b in BACKENDS)))
            raise VerificationError(f"expected a backend of {known}, got {name!r}")
    return list(wanted), manifest


def _diverging(
    model: Sparse4D, graph: onnx.ModelProto, manifest: Manifest, frames: list[GraphFrame]
) -> dict[str, Any] | None:
    plain = export_graph(model, manifest.op)
    limit = LIMITS[manifest.precision]
    for number, feeds in enumerate(record_feeds(plain, model.config, frames)):
        found = first_divergence(plain, graph, feeds, limit)
        if found is not None:
            return {"frame": number, "limit": limit, **found}
    return None


def _median(values: list[float]) -> float:
    """Of all frames but the first, which warms up."""
    return round(statistics.median(values[1:] or values), 2) if values else 0.0


def _check_same_model(model: Sparse4D, manifest: Manifest) -> None:
    ours, theirs = model.config.to_dict(), manifest.model
    different = sorted(
        key for key in {*ours, *theirs} if _plain(ours.get(key)) != _plain(theirs.get(key))
    )
    if different:
        raise VerificationError(
            f"the artifact {manifest.name!r} was exported from another model: "
            f"{', '.join(different)} differ from the checkpoint; export the checkpoint again"
        )


def _plain(value: Any) -> Any:
    """Tuples and lists are the same thing after JSON."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def format_examination(result: dict[str, Any]) -> str:
    """All runs as tables for people."""
    parts = []
    for run in result["runs"]:
        lines = [format_result(run)]
        if "stages" in run:
            lines.append(f"{'result of module':40} {'max abs':>10} {'p99.9':>10} {'cosine':>12}")
            lines += [
                f"{row['stage']:40} {row['max']:10.3g} {row['p99.9']:10.3g} {row['cosine']:12.9f}"
                + (f"  {row['unmatched']} rows without partner" if row.get("unmatched") else "")
                for row in run["stages"]
            ]
        if "divergence" in run:
            lines.append(_format_divergence(run["divergence"]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _format_divergence(found: dict[str, Any] | None) -> str:
    if found is None:
        return "no tensor diverges from the checkpoint's own export"
    inputs = ", ".join(f"{name} {error:.2g}" for name, error in found["inputs"].items())
    return (
        f"first diverging tensor (frame {found['frame']}): {found['tensor']}, error "
        f"{found['error']:.3g} of its norm (limit {found['limit']:g}), node {found['node']}, "
        f"module {found['module']}; its inputs: {inputs or 'none compared'}"
        + (f"; {', '.join(found['changed'])}" if found["changed"] else "")
    )


def format_result(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{result['candidate']} ({result['artifact']}, {result['precision']}, op {result['op']}) "
        f"against {result['reference']}, {result['frames']} frames",
        f"{'output':18} {'max abs':>11} {'p99.9':>11} {'mean':>11} {'cosine':>12}",
    ]
    for name, row in result["tensors"].items():
        lines.append(
            f"{name:18} {row['max']:11.3g} {row['p99.9']:11.3g} {row['mean']:11.3g} "
            f"{row['cosine']:12.9f}"
        )
    ids = result["ids"]
    lines.append(
        f"rows {result['rows']}, without counterpart {result['unmatched']} "
        f"(ties at the end of a list: {result['ties_at_the_cut']}), "
        f"labels differ {result['labels_wrong']}"
    )
    lines.append(
        f"track ids: {ids['equal']} equal, {ids['renamed']} exchanged by a tie, "
        f"{ids['wrong']} wrong"
    )
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in result["milliseconds"].items())
    lines.append(f"median per frame: {times}")
    lines.append("PASSED" if result["passed"] else "FAILED: " + "; ".join(result["reasons"]))
    return "\n".join(lines)
