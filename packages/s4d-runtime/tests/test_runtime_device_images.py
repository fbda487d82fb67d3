"""Images on the device engines, against stand-ins: device arrays, prepared ones, buffers, sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeDeviceArray, FakeDriver
from runtime_tiny import RAW, stream_of

from s4d_runtime import Pipeline
from s4d_runtime.cuda.images import needed_rows
from s4d_runtime.errors import (
    ImageError,
)
from s4d_runtime.rig import rig_frames


def test_device_arrays_and_prepared_images_give_the_same(
    device_pipeline: Pipeline, driver: FakeDriver
) -> None:
    def fresh(images: Callable[[list[np.ndarray]], list[Any]]) -> np.ndarray:
        device_pipeline.reset()
        frame = next(stream_of(device_pipeline))
        result = device_pipeline(replace(frame, images=images(list(frame.images))))
        assert result is not None
        return result.boxes

    expected = fresh(lambda images: images)
    foreign: list[FakeDeviceArray] = []

    def on_device(images: list[np.ndarray]) -> list[Any]:
        foreign.extend(FakeDeviceArray(i) for i in images)
        return [*foreign[:3], *images[3:]]

    np.testing.assert_array_equal(fresh(on_device), expected)
    assert all(f.streams and f.streams[0] > 2 for f in foreign[:3])  # told to wait on our stream

    def prepared(images: list[np.ndarray]) -> list[Any]:
        results: dict[int, Any] = {}

        def work(camera: int) -> None:
            pixels = images[camera].copy()
            results[camera] = device_pipeline.prepare(camera, pixels)
            pixels[:] = 0  # the caller's memory is free again

        threads = [threading.Thread(target=work, args=(c,)) for c in (5, 0, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results.get(c, images[c]) for c in range(len(images))]

    before = len(driver.live)
    np.testing.assert_array_equal(fresh(prepared), expected)
    after = len(driver.live)
    for _ in range(5):
        np.testing.assert_array_equal(fresh(prepared), expected)
    assert len(driver.live) == after > before  # slots come back


def test_prepared_images_on_the_host(artifact: Path) -> None:
    with Pipeline.load(artifact) as one, Pipeline.load(artifact) as other:
        frame = next(stream_of(one))
        expected = one(frame)
        one.reset()
        images = [one.prepare(name, i) for name, i in zip(
            one.manifest.preprocessing.camera_names, frame.images, strict=True)]  # fmt: skip
        result = one(replace(frame, images=images))
        assert expected is not None and result is not None
        np.testing.assert_array_equal(result.boxes, expected.boxes)
        with pytest.raises(ImageError, match="another camera or pipeline"):
            other(replace(frame, images=images))
        one.reset()
        with pytest.raises(ImageError, match="another camera or pipeline"):
            one(replace(frame, images=images[::-1]))
        for camera in ("CAM_NONE", 6, -1, 1.5):
            with pytest.raises(ImageError, match="expected a camera of"):
                one.prepare(camera, frame.images[0])  # type: ignore[arg-type]
        with pytest.raises(ImageError):
            one.prepare(0, frame.images[0].astype(np.float32))
        with pytest.raises(ImageError):  # on a device, and this engine is on the host
            one.prepare(0, FakeDeviceArray(frame.images[0]))


def test_image_buffers(device_pipeline: Pipeline, artifact: Path, driver: FakeDriver) -> None:
    with Pipeline.load(artifact) as host:
        results = []
        for pipeline in (device_pipeline, host):
            frame = next(stream_of(pipeline))
            buffers = pipeline.image_buffers([RAW] * 6)
            for buffer, image in zip(buffers, frame.images, strict=True):
                assert buffer.shape == image.shape and not buffer.any()
                buffer[...] = image
            result = pipeline(replace(frame, images=buffers))
            assert result is not None
            results.append(result.boxes)
    np.testing.assert_array_equal(*results)


def test_bad_device_arrays_are_refused(device_pipeline: Pipeline) -> None:
    frame = next(stream_of(device_pipeline))
    image = frame.images[0]
    wrong = (
        FakeDeviceArray(image, device=1),
        FakeDeviceArray(image.astype(np.float32)),
        FakeDeviceArray(image[:, :, :2]),
        FakeDeviceArray(image[:, ::2]),
        FakeDeviceArray(image, kind=4),
    )
    for foreign in wrong:
        assert device_pipeline(replace(frame, images=[foreign, *frame.images[1:]])) is None
        assert device_pipeline.last is not None and device_pipeline.last.cause == "bad_image"


def test_strided_and_mixed_sizes(device_pipeline: Pipeline, artifact: Path) -> None:
    frame = next(stream_of(device_pipeline))
    wide = next(rig_frames(device_pipeline.manifest, (120, 240), 0.5, seed=3))
    images = [i if n % 2 else wide.images[n] for n, i in enumerate(frame.images)]
    cameras = [c if n % 2 else wide.cameras[n] for n, c in enumerate(frame.cameras)]
    images[1] = np.repeat(images[1], 2, axis=1)[:, ::2]  # every second pixel
    images[3] = images[3][::-1][::-1]
    mixed = replace(frame, images=images, cameras=cameras)
    with Pipeline.load(artifact) as host:
        a, b = device_pipeline(mixed), host(mixed)
        assert a is not None and b is not None
        np.testing.assert_array_equal(a.boxes, b.boxes)


def test_needed_rows_cover_every_filter() -> None:
    """Rows outside do not change the result: checked with the host's kernel."""
    from s4d_ops.image import FILTERS, plan_resize_crop, resize_crop

    rng = np.random.default_rng(0)
    for raw in ((90, 160), (900, 1600), (33, 500), (64, 64), (20, 31)):
        for network in ((32, 88), (25, 70), (70, 25)):
            plan = plan_resize_crop(raw, network)
            first, last = needed_rows(plan)
            image = rng.integers(0, 256, (*raw, 3), dtype=np.uint8)
            other = rng.integers(0, 256, (*raw, 3), dtype=np.uint8)
            other[first:last] = image[first:last]
            for name in FILTERS:
                a, b = resize_crop(image, plan, name), resize_crop(other, plan, name)
                np.testing.assert_array_equal(a, b)
    assert needed_rows(plan_resize_crop((900, 1600), (256, 704)))[0] > 300


def test_host_images_through_the_buffer(device_pipeline: Pipeline, artifact: Path) -> None:
    """The exporter writes network images itself."""
    backend = device_pipeline._backend
    backend.clear_state()
    backend.buffer("images")[...] = 100
    for name in ("lidar2img", "prev_to_current", "time_interval", "state_valid"):
        backend.buffer(name)[...] = 0
    assert backend.run()["boxes"][0, 6] == pytest.approx(100 / 155, rel=1e-6)
