"""`eval` as a function: a model and a data set in, metrics and files out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.index import DriveIndex
from ..errors import EvaluationError
from ..trainer.ranks import Ranks
from .found import Found
from .metrics import evaluate_results
from .predict import check_artifact, chosen_scenes, predict_artifact, predict_checkpoint
from .submit import write_submission

INDEX = "index"
METRICS = "metrics.json"
DETECTION, TRACKING = "detection.json", "tracking.json"


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate.

    Attributes:
        data: a data set in nuScenes layout, or a converted index of one.
        out: folder of all files that are written.
        version: table folder such as `v1.0-mini`; empty = the only one there.
        split: split of the index; empty = `val` or `mini_val`, whichever the version has.
        scenes: names of scenes, instead of a split.
        batch, workers, precision: of a checkpoint, see `predict_checkpoint`.
        backend: of an artifact.
        tracking: evaluate tracking too.
        tracking_threshold: boxes with a lower score are left out of the tracking results.
        metrics: compute metrics; False only writes the results.
        show: progress on stderr.
    """

    data: Path
    out: Path
    version: str = ""
    split: str = ""
    scenes: tuple[str, ...] = ()
    batch: int = 1
    workers: int = 4
    precision: str = "fp32"
    backend: str = "auto"
    tracking: bool = True
    tracking_threshold: float = 0.2
    metrics: bool = True
    show: bool = True


def evaluate(source: Path, options: EvalOptions, ranks: Ranks) -> dict[str, Any]:
    """Runs and scores a model; every rank calls it, the first returns the metrics.

    Args:
        source: a checkpoint folder, an artifact `NAME.s4d`, or a folder with the result files
            `detection.json` and `tracking.json` of an earlier run.
        options: what on, how, where to.
        ranks: from `ranks.started()`.

    Raises:
        EvaluationError, DataError: source, data and split do not fit.
    """
    _check_source(source)
    index = open_index(options, ranks)
    split = choose_split(index, options)
    options.out.mkdir(parents=True, exist_ok=True)
    if (source / DETECTION).is_file():
        files = source / DETECTION, source / TRACKING
    else:
        found, names = _predict(source, index, split, options, ranks)
        part = options.out / f"found_{ranks.rank}.npz"
        found.save(part)
        ranks.barrier()
        if not ranks.first:
            return {}
        parts = [options.out / f"found_{rank}.npz" for rank in range(ranks.world)]
        files = write_submission(
            Found.load(parts), index, split, names, options.out, options.tracking_threshold
        )
        for file in parts:
            file.unlink()
    if not ranks.first or not options.metrics:
        return {}
    merged = evaluate_results(
        data_root(index, options),
        index.version,
        chosen_scenes(index, split),
        files[0],
        files[1] if options.tracking else None,
        progress=options.show,
    )
    merged = {"source": source.name, "split": split, **merged}
    _write(options.out / METRICS, json.dumps(merged, indent=2) + "\n")
    return merged


def open_index(options: EvalOptions, ranks: Ranks) -> DriveIndex:
    """The converted index that `data` is, or one made of it in the output folder."""
    if (options.data / "index.json").is_file():
        return DriveIndex.open(options.data)
    if not options.data.is_dir():
        raise EvaluationError(f"there is no folder {options.data}; give the data set's.")
    folder = options.out / INDEX
    if ranks.first and not (folder / "index.json").is_file():
        from ..data.conversion import convert
        from ..data.layout import find_version

        version = options.version or find_version(options.data)
        options.out.mkdir(parents=True, exist_ok=True)
        convert(options.data, folder, version, max_sweeps=0, progress=options.show)
    ranks.barrier()
    index = DriveIndex.open(folder)
    if index.root.resolve() != options.data.resolve():
        raise EvaluationError(
            f"{folder} is the index of {index.root}, not of {options.data}; give another --out."
        )
    return index


def choose_split(index: DriveIndex, options: EvalOptions) -> str | None:
    """The split to evaluate on; the chosen scenes become one of their own."""
    if options.scenes:
        unknown = sorted(set(options.scenes) - set(index.scenes))
        if unknown:
            raise EvaluationError(
                f"scene {unknown[0]} is not in the data set; it has {', '.join(index.scenes[:5])}."
            )
        index.splits["chosen"] = list(options.scenes)
        return "chosen"
    if options.split == "all":
        return None
    if options.split:
        return options.split
    usual = {"v1.0-mini": "mini_val", "v1.0-trainval": "val", "v1.0-test": "test"}
    return usual.get(index.version, "val")


def _check_source(source: Path) -> None:
    """Fail before a large data set is converted."""
    if source.suffix == ".s4d":
        check_artifact(source)
    elif not any((source / name).is_file() for name in (DETECTION, "config.json")):
        raise EvaluationError(
            f"expected {source} to be a .s4d artifact, or a folder with a checkpoint's config.json "
            f"or with {DETECTION}; it is neither."
        )


def data_root(index: DriveIndex, options: EvalOptions) -> Path:
    """Folder of the data set."""
    return index.root if (options.data / "index.json").is_file() else options.data


def _predict(
    source: Path, index: DriveIndex, split: str | None, options: EvalOptions, ranks: Ranks
) -> tuple[Found, tuple[str, ...]]:
    root = data_root(index, options)
    scenes = chosen_scenes(index, split)
    if not scenes:
        raise EvaluationError(f"split '{split}' has no scene in {root}; choose another --split.")
    if source.suffix == ".s4d":
        return predict_artifact(
            source, root, index.version, scenes, ranks, options.backend, options.show
        )
    from s4d_core import load_checkpoint

    model = load_checkpoint(source)
    found = predict_checkpoint(
        model,
        index,
        split,
        ranks,
        str(root),
        options.batch,
        options.workers,
        options.precision,
        options.show,
    )
    return found, model.config.class_names


def _write(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text)
    part.replace(file)
