"""Coverage-guided fuzzing (atheris): artifacts, and frames with their calibration.

    python tests/fuzz/fuzz_atheris.py artifact -runs=20000
    python tests/fuzz/fuzz_atheris.py frame -runs=20000

Further arguments go to libFuzzer (``-max_total_time=60``, ``-seed=1``...). A case fails if
anything but a named error comes out, if a file is opened for writing outside the case's folder, if
it takes more than 20 seconds or 2 GB, or if a sound frame after it is not answered as if it had
never come.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["s4d_runtime"]):
    from runtime_tiny import tiny_artifact

    from s4d_runtime import Camera, Frame, Pipeline
    from s4d_runtime.artifact import read_artifact
    from s4d_runtime.errors import FrameError, S4DError
    from s4d_runtime.rig import rig_frames

import numpy as np

FOLDER = Path(tempfile.mkdtemp(prefix="s4d-fuzz-"))
GOOD = tiny_artifact(FOLDER / "good.s4d").read_bytes()
SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e9, 1e308, float("nan"), float("inf"), -float("inf"))
outside: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note every file that is opened for writing outside the folder."""
    if event != "open":
        return
    path, mode, flags = arguments
    writes = any(c in mode for c in "wax+") if isinstance(mode, str) else False
    writes = writes or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes and isinstance(path, (str, bytes)):
        name = os.path.realpath(os.fsdecode(path))
        if not name.startswith((str(FOLDER), "/dev/")):
            outside.append(name)


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


with zipfile.ZipFile(io.BytesIO(GOOD)) as opened:
    MANIFEST = json.loads(opened.read("manifest.json"))
    MODEL = opened.read("model.onnx")


def damaged_manifest(provider: Any) -> Any:
    """The sound manifest with some of its values replaced, deep inside."""
    manifest = json.loads(json.dumps(MANIFEST))
    for _ in range(provider.ConsumeIntInRange(0, 4)):
        node: Any = manifest
        while isinstance(node, (dict, list)) and node:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = keys[provider.ConsumeIntInRange(0, len(keys) - 1)]
            inner = node[key]
            if isinstance(inner, (dict, list)) and inner and provider.ConsumeBool():
                node = inner
                continue
            values = (
                *(
                    None,
                    True,
                    "",
                    [],
                    {},
                    -1,
                    0,
                    1 << 31,
                    1 << 62,
                    10**30,
                    0.5,
                    "../x",
                    "/x",
                    "x\0",
                ),
                provider.ConsumeUnicodeNoSurrogates(8),
                provider.ConsumeInt(8),
            )
            node[key] = values[provider.ConsumeIntInRange(0, len(values) - 1)]
            break
    return manifest


def artifact_case(data: bytes) -> None:
    """A file that claims to be an artifact: bytes, a damaged one, or hostile contents."""
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.ConsumeIntInRange(0, 3)
    if kind == 0:
        content = provider.ConsumeBytes(1 << 16)
    elif kind == 1:  # damage in places
        content = bytearray(GOOD)
        for _ in range(provider.ConsumeIntInRange(1, 4)):
            at = provider.ConsumeIntInRange(0, max(0, len(content) - 1))
            patch = provider.ConsumeBytes(provider.ConsumeIntInRange(0, 32))
            drop = provider.ConsumeIntInRange(0, 64)
            content[at : at + drop] = patch
        content = bytes(content)
    else:
        manifest = damaged_manifest(provider)
        model = MODEL if kind == 2 else provider.ConsumeBytes(200)
        if isinstance(manifest, dict) and isinstance(manifest.get("members"), dict):
            digest = hashlib.sha256(model).hexdigest()
            manifest["members"]["model.onnx"] = {"sha256": digest, "size": len(model)}
        members = [("manifest.json", json.dumps(manifest).encode()), ("model.onnx", model)]
        if provider.ConsumeBool():
            members.append((provider.ConsumeUnicodeNoSurrogates(12) or "x", b"x"))
        try:
            content = zipped(members)
        except (ValueError, UnicodeError):  # zipfile does not write such a name
            return
    path = FOLDER / "case.s4d"
    path.write_bytes(content)
    try:
        with read_artifact(path) as artifact:
            if kind == 3:
                Pipeline.load(artifact, "onnxruntime-cpu", threads=1).close()
            else:
                assert artifact.read_model() == MODEL or kind == 0
    except S4DError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    assert sorted(os.listdir(FOLDER)) == ["case.s4d", "good.s4d"]
    assert not outside, outside


class FrameTarget:
    """A pipeline that gets a sound frame, a damaged one, and a sound one again."""

    def __init__(self) -> None:
        self.pipelines = [
            Pipeline.load(FOLDER / "good.s4d", "onnxruntime-cpu", threads=1, policy=policy)
            for policy in ("strict", "tolerant", "strict,gap=error,pose_jump=error")
        ]
        frames = rig_frames(self.pipelines[0].manifest, (90, 160), interval=0.5)
        self.sound = [next(frames) for _ in range(3)]

    def __call__(self, data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        pipeline = self.pipelines[provider.ConsumeIntInRange(0, 2)]
        pipeline.reset()
        assert pipeline(self.sound[0]) is not None
        try:
            result = pipeline(damaged_frame(provider, self.sound[1]))
        except FrameError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            result = None
        if result is not None:
            assert np.isfinite(result.boxes).all()
            return
        after = pipeline(self.sound[2])
        assert after is not None and after.boxes[0, 5] == 2 and after.boxes[0, 0] == 1.0
        assert not outside, outside


def number(provider: Any) -> float:
    if provider.ConsumeBool():
        return SPECIAL[provider.ConsumeIntInRange(0, len(SPECIAL) - 1)]
    return provider.ConsumeFloat()


def junk(provider: Any) -> Any:
    """Something that does not belong there."""
    values: tuple[Any, ...] = (
        *(None, number(provider), provider.ConsumeInt(16), provider.ConsumeBytes(4), "x", {}, []),
        *([[]], [None] * 6, object(), np.zeros(()), np.zeros((3, 3), complex), np.eye(4) * np.nan),
        *(np.zeros((90, 160, 3), np.int8), np.zeros((1, 1, 3), np.uint8), np.eye(3, dtype=bool)),
        *(np.zeros((90, 160, 3), np.uint8)[::-1], np.zeros((8, 20000, 3), np.uint8)),
    )
    return values[provider.ConsumeIntInRange(0, len(values) - 1)]


def damaged_frame(provider: Any, frame: Frame) -> Frame:
    images, cameras = list(frame.images), list(frame.cameras)
    pose, changes = np.array(frame.lidar2global), {}
    for _ in range(provider.ConsumeIntInRange(1, 3)):
        kind, index = provider.ConsumeIntInRange(0, 6), provider.ConsumeIntInRange(0, 5)
        row, column = provider.ConsumeIntInRange(0, 3), provider.ConsumeIntInRange(0, 3)
        if kind == 0:
            images[index] = junk(provider)
        elif kind == 1:
            cameras[index] = junk(provider)
        elif kind == 2:
            pose[row, column] = number(provider)
        elif kind == 3:
            changes["timestamp"] = number(provider) if provider.ConsumeBool() else junk(provider)
        elif kind == 4:
            names = ("images", "cameras", "lidar2global", "camera_timestamps", "timestamp")
            changes[names[provider.ConsumeIntInRange(0, 4)]] = junk(provider)
        elif isinstance(cameras[index], Camera):
            intrinsic = np.array(frame.cameras[index].intrinsic)
            extrinsic = np.array(frame.cameras[index].lidar2camera)
            if kind == 5:
                intrinsic[row % 3, column % 3] = number(provider)
            else:
                extrinsic[row, column] = number(provider)
            cameras[index] = Camera(intrinsic, extrinsic)
    sound = replace(frame, images=images, cameras=cameras, lidar2global=pose)
    return replace(sound, **changes)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in ("artifact", "frame"):
        sys.exit("usage: fuzz_atheris.py {artifact,frame} [libFuzzer options]")
    target = artifact_case if sys.argv[1] == "artifact" else FrameTarget()
    os.chdir(FOLDER)
    sys.addaudithook(watch)
    limits = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-len_control=0"]
    prefix = f"-artifact_prefix={tempfile.gettempdir()}/s4d-crash-"
    atheris.Setup([sys.argv[0], *limits, prefix, *sys.argv[2:]], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
