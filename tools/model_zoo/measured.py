"""The measured part of docs/models.md: speed, memory, training steps, export and roll-outs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["measured_lines"]

SPEED = (
    ("FPS, fp32", "fps_fp32", "{:.1f}"),
    ("FPS, bf16", "fps_bf16", "{:.1f}"),
    ("GB, fp32", "gb", "{:.2f}"),
)
FAST = (
    ("FPS, fp16", "fps_fp16", "{:.1f}"),
    ("plain", "eager_fps_fp16", "{:.1f}"),
    ("GB", "gb_fp16", "{:.2f}"),
    ("FPS, fp32x3", "fps_fp32x3", "{:.1f}"),
    ("plain fp32", "eager_fps_fp32", "{:.1f}"),
    ("GB", "gb_fp32x3", "{:.2f}"),
)
STEPS = (
    ("batch", "batch", "{}"),
    ("precision", "precision", "{}"),
    ("s per step", "seconds", "{:.3f}"),
    ("GB", "gb", "{:.1f}"),
)
EXPORT = (("export, s", "seconds", "{:.0f}"), ("artifact, MB", "megabytes", "{:.0f}"))
ROLLOUT = (("s per frame", "seconds_per_frame", "{:.3f}"), ("against torch", "difference", "{}"))
ENGINES = {"onnxruntime-cuda": "CUDA", "onnxruntime-cpu": "CPU"}

INFERENCE = """\
`Sparse4D.forward` as it is, batch 1 (no CUDA graphs, no compilation), median; fp32 with the TF32
convolutions that are torch's default. GB is torch's peak. Faster ways to run R50, from raw images,
are in [benchmarks.md](benchmarks.md)."""
COMPILED = """\
`s4d_core.compile_inference`, batch 1, median, from normalised images on the GPU to boxes on the
host; plain: `Sparse4D.forward` and `decode` in the same run, fp16 under autocast, fp32 with TF32
off, as is fp32x3. GB is what torch holds with the compiled model on the GPU."""
TRAINING = """\
Whole steps of the recipe, one after the other, with 35 objects per sample: targets, copy,
forward, assignment, losses, backward, AdamW. GB is torch's peak during the steps; the first step
tries convolution algorithms and may take more where there is more. All but R50 and tiny recompute
backbone blocks in backward. The model that looks ahead also computes three frames to come."""
EXPORTED = """\
ONNX Runtime through s4d-runtime at full image size, float32 (TF32 off), state fed back, over
four frames with a gap and a reset (the model that looks ahead: seven), against torch on the same
GPU. Largest differences of scores, and of boxes in metres, radians and metres per second; a row
says "fails" where a difference is over the limits of `s4d-export verify`. Rounding: torch in
float32 against torch in float64, the same frames. Processes ran side by side, so times are
pessimistic; the CPU provider had two threads."""


def measured_lines(names: list[str], measured: dict[str, Any]) -> list[str]:
    """The section, from the file that `model_zoo.py` writes."""
    lines = ["", "## Measured", ""]
    if not measured:
        return [*lines, "Not measured yet: `python tools/model_zoo/model_zoo.py`."]
    rows: dict[str, dict[str, Any]] = measured["models"]
    lines += [measured["about"], "", "### Inference", "", INFERENCE, ""]
    lines += _table(names, SPEED, lambda name: [rows.get(name, {}).get("inference", {})])
    if any("compiled" in row for row in rows.values()):
        lines += ["", "### Compiled inference", "", COMPILED, ""]
        lines += _table(names, FAST, lambda name: [rows.get(name, {}).get("compiled", {})])
    lines += ["", "### Training", "", TRAINING, ""]
    lines += _table(names, STEPS, lambda name: _steps(rows.get(name, {})))
    lines += ["", "### Export and roll-out", "", EXPORTED, ""]
    columns = [*EXPORT, ("rounding", "rounding difference", "{}")]
    columns += [
        (f"{short}: {t}", f"{e} {k}", f) for e, short in ENGINES.items() for t, k, f in ROLLOUT
    ]
    lines += _table(names, columns, lambda name: [_exported(rows.get(name, {}))])
    missing = [
        f"- `{name}`, {part}: {values['not']}"
        for name in names
        for part, values in rows.get(name, {}).items()
        if "not" in values
    ]
    return [*lines, "", "Not measured:", "", *missing] if missing else lines


def _steps(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = [values for part, values in row.items() if part.startswith("training")]
    return sorted(found, key=lambda values: values.get("batch", 0)) or [{}]


def _exported(row: dict[str, Any]) -> dict[str, Any]:
    """The export and all its roll-outs in one dictionary."""
    found = dict(row.get("export", {}))
    for part in (*ENGINES, "rounding"):
        found.update({f"{part} {key}": value for key, value in row.get(part, {}).items()})
    return found


def _table(
    names: list[str],
    columns: Sequence[tuple[str, str, str]],
    rows: Callable[[str], list[dict[str, Any]]],
) -> list[str]:
    """One line for each row of each model; a dash where there is no figure."""
    lines = [
        "| model | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in names:
        for i, values in enumerate(rows(name)):
            cells = [
                "-" if values.get(key) is None else form.format(values[key])
                for _, key, form in columns
            ]
            lines.append(f"| {f'`{name}`' if i == 0 else ''} | " + " | ".join(cells) + " |")
    return lines
