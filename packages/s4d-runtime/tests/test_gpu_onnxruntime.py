"""ONNX Runtime's CUDA provider on a real device: results, images, memory, faults.

Needs onnxruntime-gpu, a CUDA device and a build of s4d-ops with CUDA.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime")

from fusion_graphs import (  # noqa: E402
    HEIGHT,
    WIDTH,
    awkward,
    awkward_head,
    head,
    linear,
    network,
    single_awkward,
    single_network,
)
from runtime_fused import SCORE, fused_artifact  # noqa: E402
from runtime_tiny import tiny_artifact  # noqa: E402

from s4d_runtime import Frame, Pipeline  # noqa: E402
from s4d_runtime.cli.bench import process_memory  # noqa: E402
from s4d_runtime.cuda.driver import Device, Stream, call, cuda_device_problem  # noqa: E402
from s4d_runtime.errors import ArtifactError, DeviceMemoryError  # noqa: E402
from s4d_runtime.rig import rig_frames  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda_device_problem() is not None, reason="needs a CUDA device"),
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu"
    ),
]


def stream_of(pipeline: Pipeline, raw: tuple[int, int] = (180, 320)) -> Iterator[Frame]:
    return rig_frames(pipeline.manifest, raw, interval=0.5)


@pytest.fixture(scope="module", params=("plain", "fused"))
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The echo graph, and the one with a network whose operators s4d-ops fuses."""
    path = tmp_path_factory.mktemp(request.param) / f"{request.param}.s4d"
    return fused_artifact(path) if request.param == "fused" else tiny_artifact(path)


@pytest.fixture
def cuda(artifact: Path) -> Iterator[Pipeline]:
    with Pipeline.load(artifact, "onnxruntime-cuda") as loaded:
        yield loaded


def test_auto_picks_the_device_and_captures(artifact: Path) -> None:
    with Pipeline.load(artifact) as loaded:
        assert loaded.backend_name == "onnxruntime-cuda"
        assert "two CUDA graphs" in loaded.backend_choice
        assert "without" not in loaded.backend_choice
        fused = "11 convolutions and 1 chains fused" in loaded.backend_choice
        assert fused == (artifact.stem == "fused")


@pytest.mark.parametrize("graphs", (True, False))
def test_same_as_on_the_host(artifact: Path, graphs: bool) -> None:
    with (
        Pipeline.load(artifact, "onnxruntime-cuda", cuda_graph=graphs) as device,
        Pipeline.load(artifact, "onnxruntime-cpu") as host,
    ):
        for number, frame in zip(range(20), stream_of(host, (900, 1600)), strict=False):
            if number % 7 == 6:
                frame = replace(frame, timestamp=frame.timestamp + 9)
            if number % 7 == 0:
                device.reset()
                host.reset()
            a, b = device(frame), host(frame)
            assert a is not None and b is not None
            # The network's score comes from half precision.
            np.testing.assert_allclose(a.boxes[SCORE], b.boxes[SCORE], rtol=4e-3)
            a.boxes[SCORE] = b.boxes[SCORE]
            np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(a.track_ids, b.track_ids)


@pytest.mark.parametrize("filter_name", ("pillow_bicubic", "pillow_bilinear", "cv2_linear"))
def test_images_have_the_host_kernels_bytes(filter_name: str) -> None:
    """Also where the rows above the crop were never uploaded."""
    from s4d_ops.image import plan_resize_crop, resize_crop
    from s4d_runtime.artifact import Preprocessing, TensorSpec
    from s4d_runtime.cuda import DeviceBlock
    from s4d_runtime.cuda.images import ImageLoader

    device, stream = Device(), Stream()
    size = (256, 704)
    names = tuple("abcdef")
    loader = ImageLoader(device, stream, Preprocessing(size, filter_name, names))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    shapes = [(900, 1600), (900, 1600), (600, 800), (256, 704), (900, 1600), (1080, 1920)]
    target = DeviceBlock([TensorSpec("images", "uint8", (6, *size, 3))])
    for _ in range(2):
        images = [rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in shapes]
        plans = [plan_resize_crop(s, size) for s in shapes]
        loader.load(images, plans, target.arrays["images"])
        result = np.empty((6, *size, 3), np.uint8)
        stream.download(result.ctypes.data, target.address, result.nbytes)
        stream.synchronize()
        for got, image, plan in zip(result, images, plans, strict=True):
            np.testing.assert_array_equal(got, resize_crop(image, plan, filter_name))
    loader.close()
    target.close()


@pytest.mark.parametrize(
    "build",
    (network, awkward, head, awkward_head, single_network, single_awkward, linear),
    ids=lambda build: build.__name__,
)
def test_fused_operators(build: Callable[[], bytes]) -> None:
    """The rewritten graph on the device against the graph itself on the host."""
    from s4d_ops import library_path
    from s4d_runtime.backends.fusion import fuse_model

    model = build()
    rewritten, convolutions, chains, _, products = fuse_model(model, fp32x3=True)
    assert convolutions + chains + products > 2
    pictures = np.random.default_rng(1).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    host = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    options = ort.SessionOptions()
    options.register_custom_ops_library(library_path("onnxruntime", "cuda"))
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
    device = ort.InferenceSession(rewritten, options, providers=providers)
    feed = {"images": pictures}
    for got, expected in zip(device.run(None, feed), host.run(None, feed), strict=True):
        half = expected.dtype == np.float16
        # Layers of half precision round on the way: some steps of the format (2^-10 of the value).
        relative, absolute = (2e-3, 4e-3) if half else (1e-5, 2e-5)
        np.testing.assert_allclose(got, expected, rtol=relative, atol=absolute)


def test_split_products_as_on_the_host(tmp_path: Path) -> None:
    """A whole drive in fp32x3, in CUDA graphs, beside the CPU's float32."""
    path = fused_artifact(tmp_path / "single.s4d", single=True)
    with (
        Pipeline.load(path, "onnxruntime-cuda") as device,
        Pipeline.load(path, "onnxruntime-cpu") as host,
    ):
        assert "fp32x3" in device.backend_choice and "without" not in device.backend_choice
        for _, frame in zip(range(12), stream_of(host, (900, 1600)), strict=False):
            a, b = device(frame), host(frame)
            assert a is not None and b is not None
            np.testing.assert_allclose(a.boxes, b.boxes, rtol=2e-5, atol=2e-5)
            np.testing.assert_array_equal(a.track_ids, b.track_ids)


def test_device_arrays_and_prepared_images(cuda: Pipeline) -> None:
    cupy = pytest.importorskip("cupy")
    frame = next(stream_of(cuda))
    expected = cuda(frame)
    assert expected is not None
    results: dict[int, Any] = {}

    def work(camera: int) -> None:
        results[camera] = cuda.prepare(camera, frame.images[camera])

    threads = [threading.Thread(target=work, args=(c,)) for c in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wide = cupy.zeros((180, 400, 3), cupy.uint8)
    wide[:, :320] = cupy.asarray(frame.images[1])
    arrays = [cupy.asarray(i) for i in frame.images]
    mixed = [arrays[0], wide[:, :320], frame.images[2], results[3], results[4], arrays[5]]
    for images in (arrays, [results[c] for c in range(6)], mixed):
        cuda.reset()
        got = cuda(replace(frame, images=images))
        assert got is not None
        np.testing.assert_array_equal(got.boxes, expected.boxes)


def test_threads_do_not_disturb_each_other(artifact: Path) -> None:
    def results(pipeline: Pipeline, count: int) -> list[np.ndarray]:
        found = [pipeline(f) for _, f in zip(range(count), stream_of(pipeline), strict=False)]
        return [d.boxes for d in found if d is not None]

    with Pipeline.load(artifact, "onnxruntime-cuda") as alone:
        expected = results(alone, 40)
    outcome: dict[int, list[np.ndarray]] = {}

    def work(number: int) -> None:  # loads, captures and runs while the others do
        with Pipeline.load(artifact, "onnxruntime-cuda") as pipeline:
            outcome[number] = results(pipeline, 40)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        for a, b in zip(outcome[number], expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.alone
def test_loading_and_closing_leaks_nothing(artifact: Path) -> None:
    device = Device()
    trim = ctypes.CDLL(None).malloc_trim  # else the allocator's free lists hide what is lost
    used, resident = [], []
    for _ in range(30):
        with Pipeline.load(artifact, "onnxruntime-cuda") as pipeline:
            pipeline(next(stream_of(pipeline)))
        free, total = device.memory()
        used.append(total - free)
        trim(0)
        resident.append(process_memory()["resident"])
    assert max(used[15:]) - max(used[1:15]) <= 2 << 20, used
    assert max(resident[15:]) - max(resident[5:15]) <= 8 << 20, resident


def fill_device(leave: int) -> list[int]:
    """Take the device's memory but for so many bytes."""
    taken = []
    size = 1 << 34
    while size >= 1 << 20:
        free, _ = Device().memory()
        address = ctypes.c_uint64()
        try:
            if free - size < leave:
                raise DeviceMemoryError
            call("cuMemAlloc_v2", ctypes.byref(address), size)
            taken.append(address.value)
        except DeviceMemoryError:
            size //= 2
    return taken


@pytest.mark.alone
def test_no_memory_left(artifact: Path) -> None:
    """Neither loading nor a larger image kills the process, and the next sound frame recovers."""
    cuda = Pipeline.load(artifact, "onnxruntime-cuda", policy="size_changed=reset,gap=reset")
    frames = stream_of(cuda)
    first = cuda(next(frames))
    taken = fill_device(1 << 20)
    try:
        with pytest.raises(DeviceMemoryError):
            Pipeline.load(artifact, "onnxruntime-cuda")
        huge = next(stream_of(cuda, (1500, 2600)))
        with pytest.raises(DeviceMemoryError):
            cuda(huge)
        assert cuda.last is not None and cuda.last.cause == "backend"
    finally:
        for address in taken:
            call("cuMemFree_v2", address)
    second = cuda(next(frames))
    assert first is not None and second is not None
    assert second.boxes[0, 5] == 1  # the larger image had dropped the past
    cuda.close()


@pytest.mark.alone
def test_memory_ends_anywhere_while_loading(artifact: Path) -> None:
    """However far loading comes before memory ends: the named error, or a sound pipeline."""
    with Pipeline.load(artifact, "onnxruntime-cuda") as loaded:
        expected = loaded(next(stream_of(loaded)))
    assert expected is not None
    outcomes = []
    for leave in (1 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20, 128 << 20, 256 << 20):
        taken = fill_device(leave)
        try:
            with (
                suppress(DeviceMemoryError),
                Pipeline.load(artifact, "onnxruntime-cuda") as tight,
            ):
                result = tight(next(stream_of(tight)))
                assert result is not None
                np.testing.assert_allclose(result.boxes, expected.boxes, rtol=4e-3, atol=1e-5)
                outcomes.append((leave >> 20, tight.backend_choice))
        finally:
            for address in taken:
                call("cuMemFree_v2", address)
    assert 0 < len(outcomes) < 8, outcomes  # both were met
    with Pipeline.load(artifact, "onnxruntime-cuda") as again:
        result = again(next(stream_of(again)))
        assert result is not None
        np.testing.assert_array_equal(result.boxes, expected.boxes)


def test_a_sticky_error_is_named_and_the_process_lives(artifact: Path) -> None:
    """An illegal address on the device: every later call says so, Python goes on."""
    script = """
import sys
from s4d_runtime import Pipeline
from s4d_runtime.errors import DeviceLostError
from s4d_runtime.rig import rig_frames
from s4d_runtime.cuda import DeviceArray
from s4d_ops.image import plan_resize_crop
from s4d_ops.image_cuda import resize_crop

pipeline = Pipeline.load(sys.argv[1], "onnxruntime-cuda")
frames = rig_frames(pipeline.manifest, (90, 160), 0.5)
pipeline(next(frames))
nowhere = DeviceArray(0x10000, (90, 160, 3), "uint8", None)
out = DeviceArray(0x20000, (1, 32, 88, 3), "uint8", None)
resize_crop([nowhere], plan_resize_crop((90, 160), (32, 88)), out)
names = []
for action in (lambda: pipeline(next(frames)), lambda: pipeline(next(frames)), pipeline.reset):
    try:
        action()
    except DeviceLostError as error:
        names.append(type(error).__name__)
pipeline.close()
try:
    Pipeline.load(sys.argv[1], "onnxruntime-cuda")
except Exception as error:
    names.append(type(error).__name__)
print(*names)
"""
    command = [sys.executable, "-c", script, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[:3] == ["DeviceLostError"] * 3, (done.stdout, done.stderr)
    assert done.stdout.split()[3:] in (["DeviceLostError"], ["DeviceError"]), done.stdout
    assert done.returncode == 0, done.stderr


def test_a_deleted_file_does_not_matter_after_loading(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.s4d"
    copy.write_bytes(artifact.read_bytes())
    with Pipeline.load(copy, "onnxruntime-cuda") as pipeline:
        copy.unlink()
        assert pipeline(next(stream_of(pipeline))) is not None


def test_an_absent_or_cut_file_is_named(artifact: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.s4d"
    with pytest.raises(ArtifactError, match=r"gone\.s4d"):
        Pipeline.load(gone, "onnxruntime-cuda")
    cut = tmp_path / "cut.s4d"
    cut.write_bytes(artifact.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match=r"cut\.s4d"):
        Pipeline.load(cut, "onnxruntime-cuda")
