"""Running a model over the scenes of a split, frame by frame in time."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from s4d_core import Observation, Sparse4D, Sparse4DConfig, decode

from ..data import DataConfig, DriveDataset, DriveIndex, EvaluationSampler, collate, scene_rows
from ..data.batch import Batch
from ..data.loading import plain_errors
from ..data.preparation import ImagePreparation
from ..errors import EvaluationError
from ..trainer.lookahead import following, lookahead, windows
from ..trainer.precision import Precision
from ..trainer.ranks import Ranks
from .found import Found


def data_config(model: Sparse4DConfig, root: str = "") -> DataConfig:
    """What a model wants to be fed with."""
    return DataConfig(
        root=root,
        image_size=model.image.size,
        camera_names=model.camera_names,
        class_names=model.class_names,
        resize_filter=model.image.resize_filter,
        depth_strides=(),
    )


@torch.inference_mode()
def predict_checkpoint(
    model: Sparse4D,
    index: DriveIndex,
    split: str | None,
    ranks: Ranks,
    root: str = "",
    batch: int = 1,
    workers: int = 4,
    precision: str = "fp32",
    show: bool = True,
) -> Found:
    """Detections of this rank's scenes.

    Args:
        model: in eval mode; moved to the rank's device.
        index, split: the keyframes; None is all of them.
        root: data folder; empty = the index's.
        batch: scenes that run side by side; each has its own temporal state.
        precision: of backbone and neck: fp32, bf16 or fp16.
    """
    config = data_config(model.config, root)
    dataset = DriveDataset(config, index, with_depth=False, with_boxes=False)
    sampler = EvaluationSampler(
        scene_rows(index, split), batch, rank=ranks.rank, world_size=ranks.world
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=ranks.device.type == "cuda",
    )
    model = model.to(ranks.device).eval()
    image = model.config.image
    prepare = ImagePreparation(image.mean, image.std).to(ranks.device)
    pyramid = Precision(ranks.device.type, precision).for_features(model.pyramid)
    object.__setattr__(model, "pyramid", pyramid)
    found, state = Found(), None
    try:
        bar = tqdm(
            plain_errors(iter(loader)),
            total=len(sampler),
            disable=not (show and ranks.first),
            file=sys.stderr,
        )
        seen = _seen(model, bar, prepare, ranks.device)
        for (frames, _), later in windows(seen, lookahead(model.config)):
            if state is not None:
                state = state.reset(frames.sequence_start)
            output = model(
                prepare(frames, augment=False),
                frames.lidar2img,
                frames.image_wh,
                frames.timestamp,
                frames.lidar2global,
                state,
                future=following([(b, o) for b, o in later if o is not None]),
            )
            state = output.state
            for token, detections in zip(frames.tokens, decode(output, model.config), strict=True):
                if token:
                    found.add(token, detections)
    finally:
        object.__delattr__(model, "pyramid")
    return found


def _seen(
    model: Sparse4D, loader: Iterable[Batch], prepare: ImagePreparation, device: torch.device
) -> Iterator[tuple[Batch, Observation | None]]:
    """Batches on the device, with their feature maps for models that sample frames to come."""
    ahead = lookahead(model.config) > 0
    for batch in loader:
        batch = batch.to(device, non_blocking=True)
        seen = None
        if ahead:
            images = prepare(batch, augment=False)
            seen = model.observe(images, batch.lidar2img, batch.timestamp, batch.lidar2global)
        yield batch, seen


def check_artifact(artifact: Path) -> None:
    """Is it whole, and can it be run here?

    Raises:
        EvaluationError: s4d-runtime is not installed.
        s4d_runtime.ArtifactError: it is damaged.
    """
    try:
        from s4d_runtime.artifact import read_artifact
    except ImportError:
        raise EvaluationError(
            "evaluating an artifact needs s4d-runtime; install s4d-train[runtime]."
        ) from None
    read_artifact(artifact)


def predict_artifact(
    artifact: Path,
    root: Path,
    version: str,
    scenes: Sequence[str],
    ranks: Ranks,
    backend: str = "auto",
    show: bool = True,
) -> tuple[Found, tuple[str, ...]]:
    """Detections of this rank's scenes through s4d-runtime, and the artifact's class names.

    Raises:
        EvaluationError: the model looks at frames to come.
    """
    from s4d_runtime import Pipeline
    from s4d_runtime.nuscenes import NuScenes

    pipeline = Pipeline.load(artifact, backend=backend, device=ranks.device.index or 0)
    queue = pipeline.manifest.model.get("queue")
    if queue and queue["frames"] == "future":
        raise EvaluationError(
            f"{artifact.name} detects on the frame {queue['length']} calls before, never on the "
            "last ones of a scene; evaluate its checkpoint instead."
        )
    names = tuple(pipeline.manifest.class_names)
    cameras = tuple(pipeline.manifest.preprocessing.camera_names)
    data = NuScenes(root, version)
    mine = data.select(list(scenes)[ranks.rank :: ranks.world]) if len(scenes) > ranks.rank else []
    found = Found()
    total = sum(len(scene.samples) for scene in mine)
    with tqdm(total=total, disable=not (show and ranks.first), file=sys.stderr) as bar:
        for scene in mine:
            pipeline.reset()
            for token in scene.samples:
                found.add(token, pipeline(data.frame(token, cameras)))
                bar.update()
    return found, names


def chosen_scenes(index: DriveIndex, split: str | None) -> list[str]:
    """Names of the scenes of a split."""
    rows = index.samples(split)
    return [index.scenes[i] for i in dict.fromkeys(index.scene[rows].tolist())]
