"""What ``verification`` found, as tables for people."""

from __future__ import annotations

from typing import Any

__all__ = ["format_examination", "format_result"]


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
    """The result as two tables for people, each with its verdict."""
    step, free = result["step"], result["rollout"]
    ids = step["ids"]
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in result["milliseconds"].items())
    lines = [
        f"{result['candidate']} ({result['artifact']}, {result['precision']}, op {result['op']}) "
        f"against {result['reference']}, {result['frames']} frames",
        "step by step, each frame from the checkpoint's state:",
        *_table(step["tensors"]),
        f"boxes off by more than {step['tolerance']['boxes']:g}: "
        f"{(1 - step['boxes_within_tolerance']) * 100:.3g} %; rows {step['rows']}, without "
        f"counterpart {step['unmatched']}, ties {step['ties_at_the_cut']}, labels differ "
        f"{step['labels_wrong']}",
        f"track ids: {ids['equal']} equal, {ids['renamed']} exchanged by a tie, "
        f"{ids['wrong']} wrong",
        _verdict(step),
        "free roll-out, each side on its own state:",
        *_table(free["tensors"]),
        f"confident detections {free['judged']}: {free['lost']} lost, {free['added']} added; "
        f"centres {free['place']:.2g} m apart and scores {free['score']:.2g} on average; "
        f"{free['switches']} id switches",
        _verdict(free),
        f"median per frame: {times}",
        "PASSED" if result["passed"] else "FAILED",
    ]
    return "\n".join(lines)


def _table(tensors: dict[str, dict[str, float]]) -> list[str]:
    names = " ".join(f"{name:>10}" for name in ("max abs", "p99.9", "mean", "relative"))
    return [
        f"  {'output':16} {names} {'cosine':>12}",
        *(
            f"  {name:16} {row['max']:10.3g} {row['p99.9']:10.3g} {row['mean']:10.3g} "
            f"{row['relative']:10.3g} {row['cosine']:12.9f}"
            for name, row in tensors.items()
        ),
    ]


def _verdict(part: dict[str, Any]) -> str:
    return "  passed" if part["passed"] else "  failed: " + "; ".join(part["reasons"])
