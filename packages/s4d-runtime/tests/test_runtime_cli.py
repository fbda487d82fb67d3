"""The commands, end to end, on made data and the shared keyframe."""

from __future__ import annotations

import itertools
import json
import shutil

import msgspec
import numpy as np
from PIL import Image

from s4d_runtime import Pipeline
from s4d_runtime.cli import COMMANDS, main
from s4d_runtime.drive import drive
from s4d_runtime.nuscenes import NuScenes, read_results
from s4d_runtime.nuscenes.dataset import CAMERA_ORDER
from s4d_runtime.render import Objects, Renderer, View


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_help(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(name in out for name, _, _ in COMMANDS)
    for name, _, _ in COMMANDS:
        code, out, _ = run(capsys, name, "--help")
        assert code == 0 and "usage" in out


def test_wrong_usage(capsys, made_dataset):
    for arguments in ((), ("fly",), ("drive",), ("drive", made_dataset), ("bench", "x", "--z")):
        code, _, err = run(capsys, *arguments)
        assert code == 2 and err


def test_drive_writes_results_and_pictures(capsys, artifact, made_dataset, tmp_path):
    code, out, err = run(
        *(capsys, "drive", made_dataset, "--artifact", artifact, "--out", tmp_path),
        *("--render", "--annotations", "--video", "both"),
    )
    assert code == 0, err
    for name in ("detection.json", "tracking.json", "pictures/scene-0001.gif"):
        assert (tmp_path / name).is_file()
    assert (tmp_path / "pictures/scene-0001.mp4").stat().st_size > 1000
    assert str(tmp_path / "detection.json") in out and "6 frames" in out
    tokens = {t for s in NuScenes(made_dataset).scenes for t in s.samples}
    assert {*read_results(tmp_path / "detection.json")} == tokens
    tracked = read_results(tmp_path / "tracking.json")
    assert {*tracked} == tokens and any(tracked.values())
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["frames"] == 6
    assert report["pipeline"]["counters"]["first"] == 2  # one reset per scene
    pictures = sorted((tmp_path / "pictures").glob("*/*.png"))
    assert len(pictures) == 6
    with Image.open(tmp_path / "pictures/scene-0000.gif") as film:
        assert film.n_frames == 3
    assert not list(tmp_path.rglob("*partial*"))


def test_drive_gives_delayed_results_to_their_samples(artifact, made_dataset, tmp_path):
    """A model that looks one frame ahead: each result belongs to the sample before."""
    dataset = NuScenes(made_dataset)
    scene = dataset.scenes[0]
    results = []
    for folder, delay in (("now", 0), ("late", 1)):
        with Pipeline.load(artifact, threads=1) as pipeline:
            ahead = {"queue": {"frames": "future", "length": delay}} if delay else {}
            pipeline.manifest = msgspec.structs.replace(pipeline.manifest, model=ahead)
            assert pipeline.delay == delay
            (tmp_path / folder).mkdir()
            report = drive(dataset, [scene], tmp_path / folder, pipeline, progress=False)
        assert (report.frames, report.skipped) == (len(scene.samples), delay)
        results.append(read_results(tmp_path / folder / "detection.json"))
    now, late = results
    for sample, following in itertools.pairwise(scene.samples):
        scores = [
            [box["detection_score"] for box in r[t]] for r, t in ((late, sample), (now, following))
        ]
        assert scores[0] == scores[1]
    assert late[scene.samples[-1]] == []


def test_video_without_the_extra(capsys, made_dataset, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, _, err = run(
        *(capsys, "drive", made_dataset, "--annotations", "--limit", 1, "--video", "mp4"),
        *("--out", tmp_path),
    )
    assert code == 1 and "s4d-runtime[render]" in err
    assert not list(tmp_path.iterdir())  # said before anything is drawn


def test_drive_over_the_keyframe(capsys, artifact, keyframe, tmp_path):
    code, out, err = run(
        *(capsys, "drive", keyframe, "--artifact", artifact, "--out", tmp_path, "--render"),
    )
    assert code == 0, err
    assert "1 frame," in out and (tmp_path / "pictures/scene-0061/0000.png").is_file()


def test_annotations_without_a_model(capsys, keyframe, tmp_path):
    anchors = tmp_path / "anchors.npy"
    np.save(anchors, np.random.default_rng(0).normal(0, 20, (50, 11)))
    code, _, err = run(
        *(capsys, "drive", keyframe, "--annotations", "--anchors", anchors),
        *("--out", tmp_path / "o"),
    )
    assert code == 0, err
    assert not (tmp_path / "o" / "detection.json").exists()
    np.save(anchors, np.zeros((5, 2)))
    code, _, err = run(capsys, "drive", keyframe, "--anchors", anchors, "--out", tmp_path / "o")
    assert code == 1 and err.startswith("error: expected") and "Traceback" not in err


def test_drive_with_a_missing_image(capsys, artifact, made_dataset, tmp_path):
    copy = shutil.copytree(made_dataset, tmp_path / "copy")
    gone = NuScenes(copy).sample("scene-0000-sample-1").cameras["CAM_BACK"].path
    gone.unlink()
    code, _, err = run(capsys, "drive", copy, "--artifact", artifact, "--out", tmp_path / "a")
    assert code == 1 and "scene-0000-sample-1" in err and "CAM_BACK" in err
    assert not (tmp_path / "a" / "detection.json").exists()
    code, out, err = run(
        *(capsys, "drive", copy, "--artifact", artifact, "--out", tmp_path / "b"),
        *("--policy", "missing_camera=skip", "--render", "--video", "none"),
        *("--log", tmp_path / "log.jsonl"),
    )
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["cause"] for e in events if "cause" in e] == ["missing_camera"]
    assert code == 0 and "1 skipped" in out
    results = read_results(tmp_path / "b" / "detection.json")
    assert results["scene-0000-sample-1"] == [] and results["scene-0000-sample-2"]


def test_errors_are_one_line(capsys, tmp_path, artifact, made_dataset):
    for arguments in (
        ("inspect", tmp_path / "none.s4d"),
        ("drive", tmp_path, "--artifact", artifact),
        ("drive", made_dataset, "--artifact", artifact, "--scene", "scene-9"),
        ("drive", made_dataset, "--artifact", artifact, "--policy", "gap=fly"),
        ("drive", made_dataset, "--artifact", artifact, "--backend", "abacus"),
        ("view", tmp_path / "r.json", "--data", made_dataset),
        ("bench", tmp_path),
        ("drive", made_dataset, "--artifact", artifact, "--out", artifact),
        ("drive", made_dataset, "--annotations", "--out", artifact),
        ("bench", artifact, "--frames", 1, "--json", artifact / "x.json"),
    ):
        out = ("--out", tmp_path) if "drive" in arguments and "--out" not in arguments else ()
        code, _, err = run(capsys, *arguments, *out)
        assert code == 1 and err.startswith("error: ") and err.count("\n") == 1, err


def test_view(capsys, artifact, made_dataset, tmp_path):
    run(capsys, "drive", made_dataset, "--artifact", artifact, "--out", tmp_path)
    code, out, err = run(
        *(capsys, "view", tmp_path / "tracking.json", "--data", made_dataset),
        *("--out", tmp_path / "v", "--scene", "scene-0001", "--annotations"),
    )
    assert code == 0, err
    assert "3 pictures" in out and (tmp_path / "v" / "scene-0001.gif").is_file()


def test_bench(capsys, artifact, made_dataset, tmp_path):
    file = tmp_path / "b.json"
    code, out, err = run(
        *(capsys, "bench", artifact, "--frames", 5, "--warmup", 1, "--raw-size", "90x160"),
        *("--json", file),
    )
    assert code == 0, err
    assert "frames per second" in out and "infer" in out
    report = json.loads(file.read_text())
    assert report["counters"]["frames"] == 5 and report["fps"] > 1
    assert report["memory_bytes"]["process_peak"] > 0
    code, out, _ = run(
        *(capsys, "bench", artifact, "--frames", 3, "--data", made_dataset, "--prometheus")
    )
    assert code == 0 and 's4d_events_total{event="frames"} 3' in out
    for images in ("pinned", "prepared"):
        code, _, err = run(
            *(capsys, "bench", artifact, "--frames", 3, "--warmup", 1, "--raw-size", "90x160"),
            *("--images", images, "--tf32", "--no-cuda-graph"),
        )
        assert code == 0, err
    assert run(capsys, "bench", artifact, "--frames", 0)[0] == 2
    assert run(capsys, "bench", artifact, "--raw-size", "big")[0] == 2


def test_inspect(capsys, artifact):
    code, out, _ = run(capsys, "inspect", artifact)
    assert code == 0 and "tiny_echo" in out and "next_feature" in out
    code, out, _ = run(capsys, "inspect", artifact, "--json")
    assert code == 0 and json.loads(out)["name"] == "tiny_echo"


def test_boxes_are_drawn_where_geometry_says(made_dataset):
    """A green car before the front camera: its picture changes there and nowhere else."""
    dataset = NuScenes(made_dataset)
    sample = dataset.sample(dataset.scenes[0].samples[0])
    frame = dataset.frame(sample)
    known = dataset.annotations(sample)
    car = Objects(known.boxes[:1], ["car"], None, known.track_ids[:1])
    renderer = Renderer(cell_width=320)
    bare = np.asarray(renderer.draw(View(frame, CAMERA_ORDER))).astype(int)
    with_car = np.asarray(renderer.draw(View(frame, CAMERA_ORDER, objects=car))).astype(int)
    changed = np.abs(with_car - bare).max(axis=2) > 8
    cameras = changed[:, : 6 + 3 * 326]
    rows, columns = np.nonzero(cameras)
    # Front camera: upper row, middle column; the car is straight ahead.
    assert columns.min() > 6 + 326 and columns.max() < 6 + 2 * 326
    assert abs(np.median(columns) - (6 + 326 + 160)) < 60
    bev = changed[44:, 6 + 3 * 326 :]
    rows, columns = np.nonzero(bev)
    assert rows.max() < bev.shape[0] / 2  # ahead is up
    assert len(rows) > 20


def test_skipped_and_empty_frames_are_drawn(made_dataset):
    dataset = NuScenes(made_dataset)
    frame = dataset.frame(dataset.scenes[0].samples[0], (*CAMERA_ORDER[:5], "CAM_NONE"))
    picture = Renderer(cell_width=200).draw(View(frame, (*CAMERA_ORDER[:5], "CAM_NONE")))
    assert picture.width > 600


def test_interrupted(artifact, monkeypatch, capsys):
    """Also in the middle of importing a native module, which hides the interrupt."""

    def import_fails(*arguments, **options):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    def interrupts(*arguments, **options):
        raise KeyboardInterrupt

    for load in (import_fails, interrupts):
        monkeypatch.setattr(Pipeline, "load", load)
        assert main(["bench", str(artifact)]) == 130
        assert capsys.readouterr().err == "interrupted\n"
    assert main(["bench", "--no-such-option"]) == 2
