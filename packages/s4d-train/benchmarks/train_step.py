"""Time and memory of a training step with random inputs: no data set, nothing to download.

    python benchmarks/train_step.py                                # R50, 256x704, batch 6
    python benchmarks/train_step.py --profile                      # and where the time goes
    torchrun --nproc-per-node 4 benchmarks/train_step.py           # scaling: batch 6 per device

Every step is a whole one: targets and denoising anchors on the host, copy to the device, forward,
assignment, losses, backward, clipping, AdamW. Each sample has `--objects` objects and continues the
frame before, so the temporal parts are in use. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from s4d_train.configs.config import FitConfig
from s4d_train.configs.recipes import get_recipe
from s4d_train.configs.settings import override
from s4d_train.data.batch import Batch
from s4d_train.trainer.ranks import Ranks, peak_memory_gb, started
from s4d_train.trainer.trainer import Trainer

FRAME_INTERVAL = 0.5
LATENT_FRAMES = 4
"""Different random frames that are shown in turn; more than any model looks ahead."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="sparse4dv3_r50_256x704")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--objects", type=int, default=35, help="per sample")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--device", default="")
    parser.add_argument("--profile", action="store_true", help="table of the longest operators")
    parser.add_argument("--rows", type=int, default=25, help="rows of the profile table")
    args = parser.parse_args()
    config = override(get_recipe(args.config), args.overrides)
    with started(args.device) as ranks:
        result = measure(config, ranks, args)
        if ranks.first:
            print(json.dumps(result))


def measure(config: FitConfig, ranks: Ranks, args: argparse.Namespace) -> dict[str, object]:
    """Runs the steps; returns the figures of this rank."""
    trainer = Trainer(config, ranks)
    frames = [random_batch(config, args.objects, ranks, i) for i in range(LATENT_FRAMES)]
    count, times = 0, []

    def one() -> dict[str, torch.Tensor]:
        nonlocal count
        shown = [frames[i % LATENT_FRAMES] for i in range(count, count + 1 + trainer.lookahead)]
        for i, batch in enumerate(shown, start=count):
            batch.timestamp = batch.timestamp * 0 + 1.5e9 + FRAME_INTERVAL * i
        count += 1
        return trainer.train_step(shown[0], 1e-5, shown[1:])

    for _ in range(args.warmup):
        values = one()
    wait(ranks)
    # Peak of steps, without trials of convolution algorithms. What a recording uses lies in a pool
    # that does not count as allocated later: there the first steps are the measure.
    if ranks.device.type == "cuda" and not config.run.cuda_graphs:
        torch.cuda.reset_peak_memory_stats(ranks.device)
    begin = time.perf_counter()
    for _ in range(args.steps):
        start = time.perf_counter()
        values = one()
        times.append(time.perf_counter() - start)
    wait(ranks)
    total = time.perf_counter() - begin
    result = {
        "config": config.name,
        "set": args.overrides,
        "device": device_name(ranks.device),
        "ranks": ranks.world,
        "batch_per_rank": config.run.batch,
        "objects": args.objects,
        "seconds_per_step": round(total / args.steps, 5),
        "host_seconds_median": round(statistics.median(times), 5),
        "samples_per_second": round(config.run.batch * ranks.world * args.steps / total, 2),
        "memory_gb": round(peak_memory_gb(ranks.device), 2),
        "loss": round(values["loss"].item(), 4),
        "torch": torch.__version__,
    }
    if args.profile:
        table = profile(one, ranks, args.rows)
        if ranks.first:
            print(table)
    return result


def profile(one, ranks: Ranks, rows: int) -> str:  # type: ignore[no-untyped-def]
    """Operators of three steps, longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_device = ranks.device.type == "cuda"
    if on_device:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(3):
            one()
        wait(ranks)
    key = "self_device_time_total" if on_device else "self_cpu_time_total"
    return found.key_averages().table(sort_by=key, row_limit=rows, max_name_column_width=70)


def random_batch(config: FitConfig, objects: int, ranks: Ranks, seed: int) -> Batch:
    """A batch of noise in the layout of the loader, on the host."""
    draw = torch.Generator().manual_seed(seed + 100 * ranks.rank)
    size, cameras = config.run.batch, len(config.data.camera_names)
    height, width = config.data.image_size
    strides = config.data.depth_strides

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw) * (high - low) + low

    def boxes() -> torch.Tensor:
        return torch.cat(
            [
                uniform(-50, 50, objects, 2),
                uniform(-2, 1, objects, 1),
                uniform(0.5, 5, objects, 3),
                uniform(-3.1, 3.1, objects, 1),
                uniform(-5, 5, objects, 2),
            ],
            dim=1,
        )

    # Six pinhole cameras around the vehicle, so that key points fall into images.
    lidar2img = torch.zeros(size, cameras, 4, 4)
    for camera in range(cameras):
        angle = torch.tensor(camera * 6.28318 / cameras)
        forward = torch.stack([angle.cos(), angle.sin(), torch.zeros(())])
        right = torch.stack([angle.sin(), -angle.cos(), torch.zeros(())])
        down = torch.tensor([0.0, 0.0, -1.0])
        focal = 0.8 * width
        lidar2img[:, camera, 0, :3] = focal * right + width / 2 * forward
        lidar2img[:, camera, 1, :3] = focal * down + height / 2 * forward
        lidar2img[:, camera, 2, :3] = forward
        lidar2img[:, camera, 3, 3] = 1.0
    # 60 % of the pixels of the depth maps have a LiDAR return.
    depth = tuple(uniform(-40, 60, size, cameras, height // s, width // s) for s in strides)
    batch = Batch(
        images=torch.randint(
            0, 256, (size, cameras, height, width, 3), generator=draw, dtype=torch.uint8
        ),
        lidar2img=lidar2img,
        image_wh=torch.tensor([width, height]).float().expand(size, cameras, 2).contiguous(),
        timestamp=torch.zeros(size, dtype=torch.float64),
        lidar2global=torch.eye(4, dtype=torch.float64).repeat(size, 1, 1),
        focal=torch.full((size, cameras), 0.8 * width),
        depth=depth,
        boxes=[boxes() for _ in range(size)],
        labels=[torch.randint(0, 10, (objects,), generator=draw) for _ in range(size)],
        track_ids=[torch.arange(objects) for _ in range(size)],
        tokens=[str(i) for i in range(size)],
        sequence_start=torch.zeros(size, dtype=torch.bool),
        photometric=neutral_photometric(size, cameras),
        grid_mask=torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]).repeat(size, 1),
    )
    return batch.pin_memory() if ranks.device.type == "cuda" else batch


def neutral_photometric(size: int, cameras: int) -> torch.Tensor:
    """Colour parameters that change nothing; the work is the same."""
    from s4d_train.data.augment import plain_photometric

    one = torch.from_numpy(plain_photometric(cameras))
    return one.repeat(size, 1, 1)


def wait(ranks: Ranks) -> None:
    """Until the device has nothing left to do."""
    if ranks.device.type != "cpu":
        torch.accelerator.synchronize(ranks.device.index)


def device_name(device: torch.device) -> str:
    """The accelerator's product name where torch knows it."""
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


if __name__ == "__main__":
    main()
