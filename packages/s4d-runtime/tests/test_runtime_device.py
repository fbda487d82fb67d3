"""The device engines' logic against stand-ins: order on the stream, state, graphs, faults.

What runs on a real device is in test_gpu_onnxruntime.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeDriver
from runtime_tiny import stream_of, tiny_manifest

from s4d_runtime import Pipeline
from s4d_runtime.artifact import write_artifact
from s4d_runtime.cuda import driver as driver_module
from s4d_runtime.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    ManifestError,
)
from s4d_runtime.rig import rig_frames


def test_auto_picks_tensorrt_for_an_engine_and_says_so(device_pipeline: Pipeline) -> None:
    assert device_pipeline.backend_name == "tensorrt"
    assert "TensorRT 10.14.1, Stand-in, two CUDA graphs" in device_pipeline.backend_choice


@pytest.mark.parametrize("graphs", (True, False))
def test_same_as_on_the_host(trt: Any, engine: Path, artifact: Path, graphs: bool) -> None:
    with Pipeline.load(engine, cuda_graph=graphs) as device, Pipeline.load(artifact) as host:
        assert host.backend_name == "onnxruntime-cpu"
        started = trt.enqueues
        for number, frame in zip(range(9), stream_of(host), strict=False):
            if number == 4:
                frame = replace(frame, timestamp=frame.timestamp + 9)  # a gap
                device.reset()
                host.reset()
            a, b = device(frame), host(frame)
            assert a is not None and b is not None
            np.testing.assert_array_equal(a.boxes, b.boxes)
            np.testing.assert_array_equal(a.track_ids, b.track_ids)
            if number == 4:
                device.reset()
                host.reset()
        # A captured network is not started again by TensorRT.
        assert trt.enqueues - started == (0 if graphs else 9)
        stages = device.stats.latency()
        assert {"gpu_upload", "gpu_resize", "gpu_network", "gpu_download"} <= set(stages)


def test_state_stays_when_a_frame_fails(device_pipeline: Pipeline, driver: FakeDriver) -> None:
    frames = stream_of(device_pipeline)
    for _ in range(3):
        device_pipeline(next(frames))
    lost = next(frames)
    driver.fail_at["cuGraphLaunch"] = (1, 999_999)  # not a known code: an ordinary failure
    driver.sticky = 0
    with pytest.raises(DeviceError):
        device_pipeline(lost)
    driver.sticky = 0
    result = device_pipeline(next(frames))
    assert result is not None
    assert result.boxes[0, 5] == 4  # frames since the reset: the failed one does not count


def test_out_of_memory_in_the_middle_is_named(
    device_pipeline: Pipeline, driver: FakeDriver
) -> None:
    frames = stream_of(device_pipeline)
    device_pipeline(next(frames))
    driver.fail["cuMemAlloc_v2"] = OUT_OF_MEMORY
    big = next(rig_frames(device_pipeline.manifest, (180, 320), 0.5))
    with pytest.raises(DeviceMemoryError, match="no memory left"):
        device_pipeline(replace(big, timestamp=1001.0))
    del driver.fail["cuMemAlloc_v2"]
    assert device_pipeline.last is not None and device_pipeline.last.cause == "backend"
    assert device_pipeline(next(frames)) is not None


@pytest.mark.parametrize("call", ("cuMemAlloc_v2", "cuMemHostAlloc", "cuGraphInstantiateWithFlags"))
def test_out_of_memory_while_loading_frees_everything(
    trt: Any, engine: Path, driver: FakeDriver, call: str
) -> None:
    for nth in range(1, 12):
        driver.fail_at = {call: (nth, OUT_OF_MEMORY)}
        with contextlib.suppress(DeviceMemoryError):
            Pipeline.load(engine).close()
        assert not driver.live and not driver.pinned, nth
    driver.fail_at = {}
    Pipeline.load(engine).close()
    assert not driver.live and not driver.pinned


def test_a_lost_device_is_named_every_time(device_pipeline: Pipeline, driver: FakeDriver) -> None:
    frames = stream_of(device_pipeline)
    device_pipeline(next(frames))
    driver.fail_at["cuStreamSynchronize"] = (1, ILLEGAL_ADDRESS)
    with pytest.raises(DeviceLostError, match="start it anew"):
        device_pipeline(next(frames))
    for call in (lambda: device_pipeline(next(frames)), device_pipeline.reset):
        with pytest.raises(DeviceLostError):
            call()


def test_a_failed_capture_leaves_ordinary_runs(trt: Any, engine: Path, driver: FakeDriver) -> None:
    driver.fail["cuStreamEndCapture"] = 900
    driver.break_device = lambda code: code  # type: ignore[method-assign]
    with Pipeline.load(engine) as loaded:
        assert "without CUDA graphs: cuStreamEndCapture" in loaded.backend_choice


def test_without_what_the_engine_does_not_take(
    trt: Any, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split products go first, fused operators and CUDA graphs next; all are named."""
    from s4d_runtime.backends.tensorrt import TensorRT

    opened: list[tuple[bool, bool, bool]] = []
    working = TensorRT.open

    def refuse(self: Any, artifact: Any, options: Any) -> None:
        opened.append((options.fp32x3, options.fuse, options.cuda_graph))
        if options.fuse or options.cuda_graph:
            raise BackendError(f"attempt {len(opened)}")
        working(self, artifact, options)

    monkeypatch.setattr(TensorRT, "fuses", lambda manifest: True)
    monkeypatch.setattr(TensorRT, "open", refuse)
    attempts = [(False, True, True), (False, False, True), (False, False, False)]
    with Pipeline.load(engine) as loaded:
        choice = loaded.backend_choice
    assert "without fused operators: attempt 1" in choice
    assert "without CUDA graphs: attempt 2" in choice
    assert opened == attempts
    monkeypatch.setattr(TensorRT, "splits", lambda manifest: True)
    opened.clear()
    with Pipeline.load(engine) as loaded:
        assert "without fp32x3: attempt 1" in loaded.backend_choice
    assert opened == [(True, True, True), *attempts]
    opened.clear()
    with Pipeline.load(engine, tf32=True):
        assert opened == attempts
    opened.clear()
    with Pipeline.load(engine, cuda_graph=False, fuse=False) as loaded:
        assert "without CUDA graphs, as asked" in loaded.backend_choice
    with pytest.raises(BackendError, match="attempt"):
        monkeypatch.setattr(
            TensorRT, "open", lambda *a: refuse(a[0], a[1], replace(a[2], fuse=True))
        )
        Pipeline.load(engine)


def test_a_deleted_engine_file(trt: Any, engine: Path) -> None:
    """It is read once; loading it again names what is missing."""
    with Pipeline.load(engine) as loaded:
        engine.unlink()
        frames = stream_of(loaded)
        assert loaded(next(frames)) is not None and loaded(next(frames)) is not None
        with pytest.raises(ArtifactError, match=r"cannot open|cannot read|no such file|not there"):
            Pipeline.load(engine)
        assert loaded(next(frames)) is not None


def test_a_device_that_is_not_there(trt: Any, engine: Path) -> None:
    for number in (1, -1):
        with pytest.raises(BackendUnavailableError, match=f"device of 0 to 0, got {number}"):
            Pipeline.load(engine, device=number)


def test_engines_that_do_not_fit(trt: Any, engine: Path, tmp_path: Path) -> None:
    other = write_artifact(tmp_path / "o.s4d", tiny_manifest(kind="engine"), {"model.engine": b"x"})
    with pytest.raises(BackendError, match=r"magic tag does not match.*s4d-export engine"):
        Pipeline.load(other)
    trt.contexts_fail = True
    with pytest.raises(DeviceMemoryError, match="execution context"):
        Pipeline.load(engine)
    trt.contexts_fail, trt.enqueue_fails = False, True
    with pytest.raises(BackendError, match="failed on this frame"):
        Pipeline.load(engine)
    trt.enqueue_fails = False
    trt.DataType.FLOAT = "HALF"
    with pytest.raises(ManifestError, match="the engine has"):
        Pipeline.load(engine)
    trt.__version__ = "8.6.1"
    with pytest.raises(BackendUnavailableError, match="older than 10"):
        Pipeline.load(engine)


def test_the_lean_runtime_has_no_tensor_formats(
    trt: Any, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its packages 10.16 and 11.4 are: without the type that the question's answer has."""
    monkeypatch.delattr(trt, "TensorFormat")
    with Pipeline.load(engine) as loaded:
        assert loaded(next(stream_of(loaded))) is not None


def test_operator_library_is_loaded_for_plugin_engines(
    trt: Any, driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s4d_runtime.backends import tensorrt as backend

    monkeypatch.setattr(backend, "library_path", lambda kind: f"{kind}.so")
    manifest = tiny_manifest(kind="engine", op="plugin")
    path = write_artifact(tmp_path / "p.s4d", manifest, {"model.engine": b"engine"})
    Pipeline.load(path).close()
    assert trt.libraries == ["tensorrt.so"]


def test_no_driver_is_a_reason_not_a_crash(
    engine: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(driver_module, "_library", missing)
    with pytest.raises(BackendUnavailableError, match="there is no CUDA driver"):
        Pipeline.load(engine)
    with Pipeline.load(artifact) as loaded:
        assert "onnxruntime-cuda: there is no CUDA driver" in loaded.backend_choice


def test_two_packages_of_one_name(
    driver: FakeDriver, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU-only onnxruntime and onnxruntime-gpu share their files."""
    from s4d_runtime.backends import onnxruntime_cuda as backend

    for both, hint in ((True, "onnxruntime hides onnxruntime-gpu"), (False, r"s4d-runtime\[gpu\]")):
        monkeypatch.setattr(backend, "_installed", lambda name, both=both: both)
        with pytest.raises(BackendUnavailableError, match=hint):
            Pipeline.load(artifact, "onnxruntime-cuda")


def test_long_counters_are_renumbered_on_the_device(device_pipeline: Pipeline) -> None:
    frames = stream_of(device_pipeline)
    first = device_pipeline(next(frames))
    assert first is not None
    device_pipeline._backend.write_state("state_id_counter", np.array([(1 << 30) + 5], np.int32))
    second = device_pipeline(next(frames))
    third = device_pipeline(next(frames))
    assert second is not None and third is not None
    np.testing.assert_array_equal(third.track_ids, first.track_ids)
    assert int(device_pipeline._backend.read_state("state_id_counter")[0]) < 1000


@pytest.mark.parametrize(
    ("text", "kind"),
    (
        ("CUDA failure 2: out of memory ; GPU=0 ; file=x", DeviceMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceLostError),
        ("CUDA failure 900: operation not permitted when stream is capturing ;", DeviceError),
        ("CUBLAS failure 3: the resource allocation failed ; GPU=0", DeviceMemoryError),
        (
            "CUDNN failure 1002: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
            DeviceMemoryError,
        ),
        ("CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED ; GPU=0", DeviceError),
        ("BFCArena: Failed to allocate memory for requested buffer of size 9", DeviceMemoryError),
        ("Non-zero status code returned while running Add node", BackendError),
    ),
)
def test_what_onnxruntime_says_gets_a_name(driver: FakeDriver, text: str, kind: type) -> None:
    from s4d_runtime.backends.onnxruntime_cuda import _named

    error = _named(RuntimeError(text), "here")
    assert type(error) is kind and str(error).startswith("here")
