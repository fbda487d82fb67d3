"""Does the artifact compute what the checkpoint computes? Both are run and compared, twice.

Once step by step: every frame starts from the state of the checkpoint's own run, so the engine's
error is seen before anything amplifies it, and is judged strictly. And once as a free roll-out:
each side feeds its own state back, and what is judged is that the same objects are followed.
"""

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

from ..errors import VerificationError
from ..frames import GraphFrame
from ..graph.tracing import export_graph
from ..inspection import load_graph
from .comparison import TOLERANCES, Comparison, Tolerance
from .divergence import LIMITS, first_divergence
from .rollout import EngineRunner, Outputs, Recorded, Runner, TorchRunner, record_feeds
from .stages import compare_stages
from .tracks import TRACK_LIMITS, TrackComparison, TrackLimits

__all__ = ["examine", "verify"]


def verify(
    model: Sparse4D,
    artifact: str | os.PathLike[str],
    frames: Iterable[GraphFrame],
    backend: str = "auto",
    threads: int = 0,
    tolerance: Tolerance | None = None,
    progress: bool = False,
    reference: Runner | None = None,
    limits: TrackLimits | None = None,
) -> dict[str, Any]:
    """Run the model in torch and the artifact in the runtime's engine, frame by frame.

    The engine is loaded twice: one starts every frame from the model's state, the other keeps its
    own, and nothing is handed to it.

    Args:
        model: the loaded checkpoint, the reference (float32).
        artifact: path of ``NAME.s4d``.
        frames: see ``frames``; reset frames restart the tracks on both sides.
        tolerance: of the steps; default by the artifact's precision.
        reference: what stands for the model instead of torch, such as ``rollout.Recorded``.
        limits: of the roll-out; default by the artifact's precision.

    Returns:
        ``step`` as ``Comparison.result``, ``rollout`` as ``TrackComparison.result`` with
        ``tensors``, the errors row by row, which are not judged; names and milliseconds of both
        sides; ``passed`` is the verdict over both, ``reasons`` says why not.

    Raises:
        VerificationError: the artifact was made from another configuration.
        ArtifactError, BackendError: the artifact does not load.
    """
    with read_artifact(artifact) as opened:
        manifest = opened.manifest
        _check_same_model(model, manifest)
        free = EngineRunner(opened, backend, threads)
        # A model without memory is the same both ways.
        step = EngineRunner(opened, backend, threads) if manifest.state else None
    torch_side = reference or TorchRunner(model)
    strict = tolerance or TOLERANCES[manifest.precision]
    steps, rows = Comparison(strict), Comparison(strict)
    tracks = TrackComparison(limits or TRACK_LIMITS[manifest.precision])
    before: Outputs | None = None
    try:
        for frame in tqdm(frames, desc="verify", unit="frame", disable=not progress):
            if frame.reset:
                rows.reset()
                tracks.reset()
            expected, got = torch_side.step(frame), free.step(frame)
            rows.add(expected, got)
            tracks.add(expected, got)
            if step is not None:
                given = before and {name: before[out] for name, out in manifest.state.items()}
                got = step.step(frame, given)
            steps.reset(before["next_track_id"] if before and "next_track_id" in before else ())
            steps.add(expected, got)
            before = expected
    finally:
        free.close()
        if step is not None:
            step.close()
    one, all_frames = steps.result(), tracks.result()
    all_frames["tensors"] = rows.result()["tensors"]
    reasons = [f"step: {reason}" for reason in one["reasons"]]
    reasons += [f"roll-out: {reason}" for reason in all_frames["reasons"]]
    return {
        "passed": not reasons,
        "reasons": reasons,
        "artifact": manifest.name,
        "precision": manifest.precision,
        "op": manifest.op,
        "reference": torch_side.name,
        "candidate": free.name,
        "frames": steps.frames,
        "step": one,
        "rollout": all_frames,
        "milliseconds": {side.name: _median(side.milliseconds) for side in (torch_side, free)},
    }


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
