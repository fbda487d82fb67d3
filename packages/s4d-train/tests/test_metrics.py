"""Evaluation through the unpatched devkit: perfect, empty and partial results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tables import VERSION, perfect_results, write_tables

from s4d_train.errors import EvaluationError
from s4d_train.evaluation.metrics import evaluate_results
from s4d_train.evaluation.table import metrics_table

SCENES = ("scene-a", "scene-b")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


def write(folder: Path, root: Path, change=lambda content: content) -> list[Path]:
    files = []
    for kind in ("detection", "tracking"):
        file = folder / f"{kind}.json"
        file.write_text(json.dumps(change(perfect_results(root, kind))))
        files.append(file)
    return files


def test_ground_truth_scores_one(root: Path, tmp_path: Path) -> None:
    merged = evaluate_results(root, VERSION, SCENES, *write(tmp_path, root))
    found = merged["summary"]
    assert found["mAP"] == pytest.approx(1.0)
    assert found["NDS"] == pytest.approx(1.0)
    # The devkit's recall thresholds reach at most 1; AMOTA of perfect tracks is 1 up to that grid.
    assert found["AMOTA"] > 0.95
    assert found["IDS"] == 0 and "mAP_present" not in found
    assert json.loads(json.dumps(merged)) == merged
    assert "AMOTA" in metrics_table(merged)
    assert not (root / VERSION / "splits.json").exists()


def test_one_scene_of_two(root: Path, tmp_path: Path) -> None:
    """A split that is not official, in a data set that is not whole."""
    merged = evaluate_results(root, VERSION, SCENES[:1], *write(tmp_path, root))
    assert merged["summary"]["mAP"] == pytest.approx(1.0)
    assert merged["scenes"] == ["scene-a"]


def empty(content):
    return {**content, "results": {token: [] for token in content["results"]}}


def test_no_boxes_give_zero(root: Path, tmp_path: Path) -> None:
    merged = evaluate_results(root, VERSION, SCENES, *write(tmp_path, root, empty))
    found = merged["summary"]
    assert found["mAP"] == 0.0 and found["NDS"] == 0.0 and found["AMOTA"] == 0.0
    assert "NDS" in metrics_table(merged)


def test_some_frames_without_boxes(root: Path, tmp_path: Path) -> None:
    def half(content):
        results = {t: b if t.endswith(("0", "1")) else [] for t, b in content["results"].items()}
        return {**content, "results": results}

    merged = evaluate_results(root, VERSION, SCENES, *write(tmp_path, root, half))
    assert 0.2 < merged["summary"]["mAP"] < 0.8


def test_nothing_to_find(tmp_path: Path) -> None:
    root = write_tables(tmp_path / "data", per_class=0)
    merged = evaluate_results(root, VERSION, SCENES, *write(tmp_path, root))
    assert merged["summary"]["mAP"] == 0.0
    assert merged["summary"]["AMOTA"] == 0.0


def test_classes_that_are_not_there(root: Path, tmp_path: Path) -> None:
    """A data set with cars only: mAP counts nine classes as 0, `mAP_present` does not."""
    copy = tmp_path / "cars"
    shutil.copytree(root, copy)
    table = copy / VERSION / "sample_annotation.json"
    rows = [row for row in json.loads(table.read_text()) if "-car-" in row["token"]]
    table.write_text(json.dumps(rows))
    merged = evaluate_results(copy, VERSION, SCENES, write(tmp_path, copy)[0])
    assert merged["summary"]["mAP"] == pytest.approx(0.1)
    assert merged["summary"]["mAP_present"] == pytest.approx(1.0)
    assert merged["detection"]["classes_present"] == ["car"] and "tracking" not in merged


def test_missing_keyframe_is_named(root: Path, tmp_path: Path) -> None:
    def lose(content):
        results = dict(content["results"])
        del results["scene-b-2"]
        return {**content, "results": results}

    with pytest.raises(EvaluationError, match=r"no entry for 1 keyframes.*scene-b-2"):
        evaluate_results(root, VERSION, SCENES, *write(tmp_path, root, lose))


def test_bad_files_and_folders(root: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"results": ')
    with pytest.raises(EvaluationError, match="cannot read the result file"):
        evaluate_results(root, VERSION, SCENES, broken)
    with pytest.raises(EvaluationError, match="nuScenes tables"):
        evaluate_results(root, "v1.0-test", SCENES, broken)
    with pytest.raises(EvaluationError, match="no scene"):
        evaluate_results(root, VERSION, (), broken)
