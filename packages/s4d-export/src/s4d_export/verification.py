"""Does the artifact compute what the checkpoint computes? A roll-out of both, compared."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from s4d_core import Sparse4D
from s4d_runtime.artifact import Manifest, read_artifact

from .comparison import TOLERANCES, Comparison, Tolerance
from .errors import VerificationError
from .frames import GraphFrame
from .rollout import EngineRunner, TorchRunner

__all__ = ["format_result", "verify"]


def verify(
    model: Sparse4D,
    artifact: str | os.PathLike[str],
    frames: Iterable[GraphFrame],
    backend: str = "auto",
    threads: int = 0,
    tolerance: Tolerance | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Run the model in torch and the artifact in the runtime's engine, frame by frame.

    Each side feeds its own state back; nothing is handed from one to the other.

    Args:
        model: the loaded checkpoint, the reference (float32).
        artifact: path of ``NAME.s4d``.
        frames: see ``frames``; reset frames restart the tracks on both sides.
        tolerance: default by the artifact's precision.

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
    torch_side = TorchRunner(model)
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
