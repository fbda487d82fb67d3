"""nuScenes detection and tracking metrics of result files, one merged dictionary.

The devkit is used as it is installed. What it cannot take is handled here: results without a single
box (it stops with "Invalid box type"), a data set without boxes to find, and splits that are not
official.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import EvaluationError
from .view import SPLIT, scene_view

DETECTION = "detection_cvpr_2019"
TRACKING = "tracking_nips_2019"
FAR = 1e6
"""Metres; a box so far away is dropped by the devkit's own range filter."""


def evaluate_results(
    root: Path | str,
    version: str,
    scenes: Sequence[str],
    detection: Path | str | None = None,
    tracking: Path | str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Metrics of result files in the devkit's submission format.

    Args:
        root: folder of a data set in nuScenes layout.
        version: name of its table folder, such as `v1.0-mini`.
        scenes: names of the scenes to evaluate on. All their keyframes need an entry, maybe empty.
        detection, tracking: the two result files; one that is None is not evaluated.

        progress: say on stderr what is being computed.

    Returns:
        `detection` and `tracking`: what the devkit reports for each, and `summary`: the main
        figures of both (mAP, NDS, mATE, ..., AMOTA, AMOTP, IDS, ...). NaN values become None.

    Raises:
        EvaluationError: the files and the scenes do not fit together.
    """
    merged: dict[str, Any] = {"scenes": list(scenes)}
    with scene_view(Path(root), version, scenes) as view:
        parts = (("detection", detection, _detect), ("tracking", tracking, _track))
        for name, file, run in parts:
            if file is not None:
                if progress:
                    print(f"{name} metrics, scenes: {len(scenes)}", file=sys.stderr, flush=True)
                merged[name] = _run(run, name, view, version, Path(file))
    merged["summary"] = summary(merged)
    return _plain(merged)


def summary(merged: Mapping[str, Any]) -> dict[str, float]:
    """The main figures of a merged result, under their usual names."""
    figures: dict[str, float] = {}
    if "detection" in merged:
        found = merged["detection"]
        figures["mAP"], figures["NDS"] = found["mean_ap"], found["nd_score"]
        present = found["classes_present"]
        if 0 < len(present) < len(found["mean_dist_aps"]):
            aps = [found["mean_dist_aps"][name] for name in present]
            figures["mAP_present"] = sum(aps) / len(aps)
        short = {"trans": "ATE", "scale": "ASE", "orient": "AOE", "vel": "AVE", "attr": "AAE"}
        for key, name in short.items():
            figures[f"m{name}"] = found["tp_errors"][f"{key}_err"]
    if "tracking" in merged:
        found = merged["tracking"]
        for name in ("amota", "amotp", "recall", "mota", "motp", "ids", "frag"):
            figures[name.upper() if name != "recall" else name] = found[name]
    return figures


def _run(
    run: Callable[[Path, str, Path, Path], dict[str, Any]],
    name: str,
    view: Path,
    version: str,
    file: Path,
) -> dict[str, Any]:
    content = _read(file)
    lost = _missing_samples(view, version, content["results"])
    if lost:
        raise EvaluationError(
            f"{file.name} has no entry for {len(lost)} keyframes of the chosen scenes, first "
            f"{lost[0]}; run every keyframe, with an empty list where nothing was found."
        )
    with tempfile.TemporaryDirectory(prefix="s4d-eval-") as folder:
        out = Path(folder)
        if not any(content["results"].values()):
            content["results"] = _with_far_box(content["results"], name)
            file = out / "results.json"
            file.write_text(json.dumps(content))
        said = io.StringIO()  # the devkit's own lines and bars
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                return run(view, version, file, out)
            except Exception as error:
                if "Invalid box type" in str(error):
                    return _nothing_to_find(name)
                if isinstance(error, AssertionError | KeyError | ValueError):
                    raise EvaluationError(
                        f"the devkit refused {file.name} ({name}): {error}"
                    ) from error
                raise


def _detect(view: Path, version: str, file: Path, out: Path) -> dict[str, Any]:
    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    nusc = NuScenes(version=version, dataroot=str(view), verbose=False)
    run = DetectionEval(nusc, config_factory(DETECTION), str(file), SPLIT, str(out), verbose=False)
    metrics, _ = run.evaluate()
    present = sorted({box.detection_name for box in run.gt_boxes.all})
    return {**metrics.serialize(), "classes_present": present}


def _track(view: Path, version: str, file: Path, out: Path) -> dict[str, Any]:
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.tracking.evaluate import TrackingEval

    config = config_factory(TRACKING)
    run = TrackingEval(config, str(file), SPLIT, str(out), version, str(view), verbose=False)
    metrics, _ = run.evaluate()
    return dict(metrics.serialize())


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(f"cannot read the result file {file}: {error}.") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise EvaluationError(
            f"{file} is no nuScenes result file: expected an object with 'meta' and 'results'."
        )
    return content


def _missing_samples(view: Path, version: str, results: Mapping[str, Any]) -> list[str]:
    tables = view / version
    chosen = set(json.loads((tables / "splits.json").read_text())[SPLIT])
    scenes = json.loads((tables / "scene.json").read_text())
    tokens = {scene["token"] for scene in scenes if scene["name"] in chosen}
    samples = json.loads((tables / "sample.json").read_text())
    return [s["token"] for s in samples if s["scene_token"] in tokens and s["token"] not in results]


def _with_far_box(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same results with one box out of every range: the devkit needs one to know their kind."""
    token = next(iter(results))
    box: dict[str, Any] = {
        "sample_token": token,
        "translation": [FAR, FAR, 0.0],
        "size": [1.0, 1.0, 1.0],
        "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0],
    }
    if name == "detection":
        box |= {"detection_name": "car", "detection_score": 0.0, "attribute_name": ""}
    else:
        box |= {"tracking_id": "0", "tracking_name": "car", "tracking_score": 0.0}
    return {**results, token: [box]}


def _nothing_to_find(name: str) -> dict[str, Any]:
    """What is reported where the chosen scenes have no box of any evaluated class."""
    from nuscenes.eval.common.config import config_factory

    if name == "detection":
        from nuscenes.eval.detection.constants import TP_METRICS
        from nuscenes.eval.detection.data_classes import DetectionMetrics

        config = config_factory(DETECTION)
        metrics = DetectionMetrics(config)
        for label in config.class_names:
            for threshold in config.dist_ths:
                metrics.add_label_ap(label, threshold, 0.0)
            for error in TP_METRICS:
                metrics.add_label_tp(label, error, 1.0)
        metrics.add_runtime(0.0)
        return {**metrics.serialize(), "classes_present": []}
    from nuscenes.eval.tracking.data_classes import TrackingMetrics

    config = config_factory(TRACKING)
    tracking = TrackingMetrics(config)
    for label in config.class_names:
        for metric, worst in config.metric_worst.items():
            tracking.add_label_metric(metric, label, worst)
    tracking.add_runtime(0.0)
    return dict(tracking.serialize())


def _plain(value: Any) -> Any:
    """JSON values; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | int | str | bool) or value is None:
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return _plain(value.item()) if hasattr(value, "item") else _plain(list(value))
