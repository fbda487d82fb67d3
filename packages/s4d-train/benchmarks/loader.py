"""Images per second of the training loader at nuScenes size, and what each part costs.

    python benchmarks/loader.py [--root DIR] [--workers 2] [--batches 20] [--size 256x704]

Without ``--root`` a short synthetic drive of 1600 x 900 images is made first.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from s4d_train.data import (
    AugmentConfig,
    DataConfig,
    Draw,
    DriveDataset,
    DriveIndex,
    SequenceSampler,
    collate,
    sequence_rows,
)
from s4d_train.data.augment import draw_sequence
from s4d_train.data.conversion import convert
from s4d_train.data.depth import depth_maps
from s4d_train.data.images import load_evaluation_image, load_points, load_training_image
from s4d_train.data.layout import find_version


def milliseconds(work: Callable[[], object], seconds: float = 1.0) -> tuple[float, float]:
    """Median wall and processor time of one call; they differ where the machine is busy."""
    work()
    wall, cpu = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(wall) < 5:
        start, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return float(np.median(wall)) * 1e3, float(np.median(cpu)) * 1e3


def decode(path: Path, draft: tuple[int, int] | None = None) -> None:
    image = Image.open(path)
    if draft:
        image.draft("RGB", draft)
    image.load()


def parts(index: DriveIndex, config: DataConfig) -> None:
    """One row per part, one thread."""
    path = index.root / index.camera_file[0, 0].decode()
    width, height = (int(v) for v in index.camera_size[0, 0])
    raw, size = (height, width), config.image_size
    transform = draw_sequence(AugmentConfig(), np.random.default_rng(1)).transform(raw, size)
    straight = replace(transform, rotate=0.0, flip=False)
    half = (transform.resized_size[1], transform.resized_size[0])
    points_path = index.root / index.lidar_file[0].decode()
    points = load_points(points_path)
    dataset = DriveDataset(config, index)
    sample = dataset[Draw(0, True, visit=0)]
    matrices = sample.lidar2img.numpy()
    name = config.resize_filter
    rows: list[tuple[str, Callable[[], object]]] = [
        ("decode, full size", lambda: decode(path)),
        ("decode, reduced by the JPEG decoder", lambda: decode(path, half)),
        (
            "image: full decode, resize, crop",
            lambda: load_training_image(path, straight, name, False),
        ),
        (
            "image: reduced decode, resize, crop",
            lambda: load_training_image(path, straight, name, True),
        ),
        (
            "image: the same, flip and rotation",
            lambda: load_training_image(path, transform, name, True),
        ),
        ("image: evaluation (s4d_ops)", lambda: load_evaluation_image(path, raw, size, name)),
        ("read the points of a sweep", lambda: load_points(points_path)),
        (
            "depth maps of all cameras",
            lambda: depth_maps(points, matrices, size, config.depth_strides, 60.0),
        ),
        ("whole training sample", lambda: dataset[Draw(0, True, visit=0)]),
        ("whole evaluation sample", lambda: dataset[Draw(0, True)]),
    ]
    print(f"\n{width} x {height} JPEG to {size[1]} x {size[0]}, {len(matrices)} cameras, 1 thread")
    print(f"{'part':42s}{'wall ms':>9s}{'CPU ms':>9s}")
    for text, work in rows:
        wall, cpu = milliseconds(work)
        print(f"{text:42s}{wall:9.2f}{cpu:9.2f}")


def throughput(
    index: DriveIndex, config: DataConfig, workers: int, batch: int, batches: int
) -> None:
    """Batches through a DataLoader, after a warm-up."""
    dataset = DriveDataset(config, index)
    sampler = SequenceSampler(sequence_rows(index, None, config.sequence_parts), batch)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        prefetch_factor=2 if workers else None,
    )
    stream = iter(loader)
    for _ in itertools.islice(stream, 2 * max(1, workers)):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(stream, batches):
        pass
    seconds = time.perf_counter() - start
    images = batches * batch * len(config.camera_names)
    print(
        f"\n{workers} workers, batch {batch}: {images / seconds:.0f} images/s, "
        f"{batches * batch / seconds:.1f} samples/s, {seconds / batches * 1e3:.0f} ms per batch"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="nuScenes data set; default: synthetic images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--size", default="256x704", help="HxW")
    args = parser.parse_args()
    height, width = (int(v) for v in args.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        root = args.root
        if not root:
            from s4d_train.synth import SynthConfig, generate

            config = SynthConfig(scenes=1, frames=4, image_size=(1600, 900))
            root = generate(Path(scratch) / "drive", config)
        out = Path(scratch) / "index"
        index = convert(root, out, find_version(root), workers=1, progress=False)
        data = DataConfig(index=str(out), image_size=(height, width))
        parts(index, data)
        throughput(index, data, args.workers, args.batch, args.batches)


if __name__ == "__main__":
    main()
