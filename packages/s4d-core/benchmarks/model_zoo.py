"""Every listed model once through everything: inference, a training step, export, ONNX Runtime.

    python benchmarks/model_zoo.py --out benchmarks/model_zoo.json           # all, on a GPU
    python benchmarks/model_zoo.py --models "*tiny" --device cpu --out zoo.json
    python benchmarks/model_zoo.py --reduced --device cpu --out zoo.json     # small shapes of all

Needs s4d-train, s4d-export and s4d-runtime beside s4d-core. Weights are random, with BatchNorm
statistics of the frames at hand, so that values stay moderate. Export and the roll-out on ONNX
Runtime's CPU provider run in `--workers` processes of their own while the GPU is measured. The
file is written again after every finished part.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import s4d_core
from s4d_core import Sparse4D, Sparse4DConfig
from s4d_core.backbones.deform_conv import DeformConv2d

# Samples per step. The others train at the batch of their recipe.
BATCHES = {"sparse4dv1_r101_h4_640x1600": (1, 2), "sparse4dv3_r101_512x1408": (6,)}
OBJECTS = 35
BOX_LIMIT = 5e-3
Part = dict[str, Any]


def small(config: Sparse4DConfig) -> Sparse4DConfig:
    """The same parts with few channels, blocks and instances: to try this program on a CPU."""
    backbone: Any = config.backbone
    if isinstance(backbone, s4d_core.VoVNetConfig):
        backbone = replace(
            backbone,
            stem_channels=(8, 8, 16),
            widths=(8,) * 4,
            out_channels=(16, 24, 32, 32),
            layers=2,
            blocks=(1, 1, 2, 1),
        )
    elif isinstance(backbone, s4d_core.EvaConfig):
        backbone = replace(
            backbone,
            width=64,
            depth=3,
            num_heads=2,
            hidden=96,
            window_size=2,
            global_blocks=(2,),
            position_grid=(4, 12),
            pyramid_channels=32,
        )
    else:
        backbone = replace(backbone, layers=(1, 1, 2, 1), widths=(8, 8, 16, 16), stem_channels=8)
    config = config.replace(backbone=backbone)
    return s4d_core.reduced_config(config, image_size=(64, 192)).replace(name=config.name)


def resized(config: Sparse4DConfig, size: tuple[int, int]) -> Sparse4DConfig:
    """The whole network for images of another size."""
    backbone: Any = config.backbone
    if isinstance(backbone, s4d_core.EvaConfig):
        patch = backbone.patch_size
        backbone = replace(backbone, position_grid=(size[0] // patch, size[1] // patch))
    return config.replace(image=replace(config.image, size=size), backbone=backbone)


def pictures(config: Sparse4DConfig) -> Tensor:
    """(1, N, H, W, 3) uint8: smooth random pictures with a little noise, as roll-outs show."""
    draw = torch.Generator().manual_seed(0)
    cameras, (height, width) = config.num_cameras, config.image.size
    coarse = torch.rand(cameras, 3, height // 16, width // 16, generator=draw) * 255
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = smooth + torch.randn(smooth.shape, generator=draw) * 6
    return noisy.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)[None]


def prepared(config: Sparse4DConfig, device: str) -> Sparse4D:
    """A model in eval mode with random weights that give moderate values."""
    torch.manual_seed(0)
    with torch.device(device):
        model = s4d_core.build_model(config)
    model = model.to(device).eval()
    for module in model.modules():
        if isinstance(module, DeformConv2d):  # offsets of about a pixel instead of none
            nn.init.normal_(module.conv_offset.weight, std=0.01)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        model.pyramid(model.normalise(pictures(config).to(device)))
    return model.eval()


def inputs(config: Sparse4DConfig, device: str, step: int) -> dict[str, Tensor]:
    """A frame of noise from cameras in a ring, half a second after the one before."""
    cameras, (height, width) = config.num_cameras, config.image.size
    draw = torch.Generator().manual_seed(step)
    matrix = torch.zeros(1, cameras, 4, 4)
    for camera in range(cameras):
        angle = torch.tensor(camera * 2 * torch.pi / cameras)
        forward = torch.stack([angle.cos(), angle.sin(), torch.zeros(())])
        right = torch.stack([angle.sin(), -angle.cos(), torch.zeros(())])
        down = torch.tensor([0.0, 0.0, -1.0])
        focal = 0.8 * width
        matrix[:, camera, 0, :3] = focal * right + width / 2 * forward
        matrix[:, camera, 1, :3] = focal * down + height / 2 * forward
        matrix[:, camera, 2, :3] = forward
        matrix[:, camera, 3, 3] = 1.0
    values = {
        "images": torch.randn(1, cameras, 3, height, width, generator=draw),
        "lidar2img": matrix,
        "image_wh": torch.tensor([width, height]).float().expand(1, cameras, 2).contiguous(),
        "timestamp": torch.tensor([0.5 * step], dtype=torch.float64),
        "lidar2global": torch.eye(4, dtype=torch.float64)[None],
    }
    return {name: value.to(device) for name, value in values.items()}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def gigabytes(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def inference(config: Sparse4DConfig, device: str, frames: int) -> Part:
    """Frames per second of `Sparse4D.forward` in float32 and in bfloat16, state fed back."""
    model = prepared(config, device)
    torch.cuda.empty_cache()
    future: list[Any] = []
    shown = [inputs(config, device, i) for i in range(2)]
    result: Part = {}
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        state = None
        with torch.no_grad(), torch.autocast(device, dtype or torch.bfloat16, dtype is not None):
            if config.queue is not None and config.queue.frames == "future":
                # Maps of later frames: each is computed once and looked at from several.
                future = [
                    model.observe(
                        **{
                            k: v
                            for k, v in inputs(config, device, 9 + i).items()
                            if k != "image_wh"
                        }
                    )
                    for i in range(config.queue.length)
                ]
            times = []
            for i in range(frames + 3):
                wait(device)
                if i == 3 and device == "cuda":  # without the trials of the first convolutions
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                frame = {**shown[i % 2]}
                frame["timestamp"] = torch.full_like(frame["timestamp"], 0.5 * min(i, 8))
                output = model(**frame, state=state, future=future)
                state = output.state
                wait(device)
                times.append(time.perf_counter() - start)
        last = output.cls[-1]
        assert last is not None
        if not (bool(torch.isfinite(last).all()) and bool(torch.isfinite(output.box[-1]).all())):
            raise RuntimeError(f"values of {name} inference are not finite")
        times = sorted(times[3:])
        result[f"fps_{name}"] = 1 / times[len(times) // 2]
        if name == "fp32":
            result["gb"] = gigabytes(device)
    return result


def training(config: Sparse4DConfig, device: str, batch: int | None, steps: int) -> Part:
    """Seconds and memory of a whole training step with the recipe of the model."""
    from s4d_train.configs.recipes import get_recipe
    from s4d_train.trainer.ranks import started

    tool = _load("train_step", _package("s4d-train") / "benchmarks" / "train_step.py")
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    name = config.name
    recipe = get_recipe("sparse4dv3_r50_256x704" if name == "sparse4dv3_r50" else name)
    run = replace(recipe.run, batch=batch or recipe.run.batch, workers=0)
    start = Path(tempfile.mkdtemp())
    s4d_core.save_checkpoint(prepared(config, device), start)
    recipe = replace(recipe, run=run, model=replace(recipe.model, init=str(start)))
    if config != s4d_core.get_config(name):
        folder = Path(tempfile.mkdtemp())
        (folder / "model.json").write_text(json.dumps({"model": config.to_dict()}))
        recipe = replace(
            recipe,
            model=replace(recipe.model, name=str(folder / "model.json")),
            data=replace(recipe.data, image_size=config.image.size),
            run=replace(run, batch=batch or 1, precision="bf16"),
        )
    warmup = 4 if device == "cuda" else 1
    args = argparse.Namespace(
        objects=OBJECTS, steps=steps, warmup=warmup, overrides=[], profile=False, rows=0
    )
    for precision in dict.fromkeys((recipe.run.precision, "bf16")):  # random weights overflow
        recipe = replace(recipe, run=replace(recipe.run, precision=precision))
        with started("" if device == "cuda" else device) as ranks:
            found = tool.measure(recipe, ranks, args)
        if found["loss"] == found["loss"]:
            break
    else:
        raise RuntimeError("the loss is not a number")
    shutil.rmtree(start)
    return {
        "batch": found["batch_per_rank"],
        "seconds": found["seconds_per_step"],
        "gb": found["memory_gb"] if device == "cuda" else None,
        "loss": found["loss"],
        "precision": recipe.run.precision,
        "checkpointing": recipe.model.checkpointing,
    }


def export_and_roll(
    config: Sparse4DConfig, frames: int, threads: int, folder: str
) -> dict[str, Part]:
    """Export with the plug-in operator, then ONNX Runtime on the CPU against torch, state fed back.

    Runs in a process of its own.
    """
    torch.set_num_threads(threads)
    parts: dict[str, Part] = {}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the GPU belongs to the measurements
    try:
        from s4d_export import build_manifest, export_graph, random_frames, save_artifact
        from s4d_export.comparison import TOLERANCES, Comparison
        from s4d_export.rollout import EngineRunner, TorchRunner
        from s4d_runtime.artifact import read_artifact

        start = time.perf_counter()
        model = prepared(config, "cpu")
        begin = time.perf_counter()
        graph = export_graph(model, "plugin")
        path = Path(folder) / f"{config.name}.s4d"
        save_artifact(path, graph, build_manifest(config, config.name, "plugin", "fp32"))
        parts["export"] = {
            "seconds": time.perf_counter() - begin,
            "megabytes": path.stat().st_size / 1e6,
            "nodes": len(graph.graph.node),
        }
        del graph
        if not frames:
            path.unlink()
            parts["onnxruntime"] = {"not": "left out: minutes per frame on this CPU"}
            return parts
        with read_artifact(path) as opened:
            engine = EngineRunner(opened, "onnxruntime-cpu", threads)
        torch_side = TorchRunner(model)
        # Of random weights: rounding moves single boxes by millimetres.
        comparison = Comparison(replace(TOLERANCES["fp32"], boxes=BOX_LIMIT))
        if config.queue is not None and config.queue.frames == "future":
            frames += config.queue.length  # the graph answers that many frames later
        for frame in random_frames(config, frames):
            expected, got = torch_side.step(frame), engine.step(frame)
            comparison.add(expected, got)
            largest = float(np.abs(expected["boxes"]).max())
        engine.close()
        path.unlink()
        result = comparison.result()
        parts["onnxruntime"] = {
            "frames": frames,
            "seconds_per_frame": min(engine.milliseconds) / 1e3,
            "passed": result["passed"],
            "largest_box_value": largest,
            "difference": _difference(result),
            "result": result,
            "all_seconds": time.perf_counter() - start,
        }
    except Exception as error:
        missing = "onnxruntime" if "export" in parts else "export"
        parts[missing] = {"not": _reason(error)}
        traceback.print_exc()
    return parts


def _difference(result: dict[str, Any]) -> str:
    """Largest differences of scores and boxes, and why the comparison fails where it does."""
    scores, boxes = (result["tensors"][name]["max"] for name in ("scores", "boxes"))
    text = f"{scores:.0e}, {boxes:.0e}"
    return text if result["passed"] else f"{text} (fails: {'; '.join(result['reasons'])})"


def _reason(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _package(name: str) -> Path:
    return Path(__file__).resolve().parents[2] / name


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attempt(what: str, work: Callable[[], Part]) -> Part:
    """The part, or why there is none; memory is given back."""
    start = time.perf_counter()
    try:
        part = work()
    except Exception as error:
        traceback.print_exc()
        part = {"not": _reason(error)}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    part["all_seconds"] = round(time.perf_counter() - start, 1)
    print(what, {k: v for k, v in part.items() if k != "result"}, flush=True)
    return part


def about(device: str, workers: int, threads: int) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    version = torch.__version__.split("+")[0]
    return f"""On {name}, torch {version}, random weights. Inference: batch 1,
`Sparse4D.forward` without graphs or compilation, median; memory is torch's peak. Training: whole
steps of the recipe with {OBJECTS} objects per sample. ONNX Runtime: CPU provider, {threads} threads
({workers} such processes beside the measurements), compared with torch on the CPU in float32
over frames with state fed back."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="*", help="pattern of names")
    parser.add_argument("--skip", default="", help="comma-separated names")
    parser.add_argument("--export-only", default="", help="names that ONNX Runtime shall not run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reduced", action="store_true", help="few channels and blocks")
    parser.add_argument("--image", default="", help="HEIGHTxWIDTH instead of the models' own")
    parser.add_argument("--parts", default="inference,training,export")
    parser.add_argument("--frames", type=int, default=4, help="of the roll-out")
    parser.add_argument("--repeat", type=int, default=10, help="frames and steps that are timed")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=4, help="of each worker")
    parser.add_argument("--out", default="model_zoo.json")
    args = parser.parse_args()
    names = [n for n in s4d_core.list_models(args.models) if n not in args.skip.split(",")]
    configs = {n: s4d_core.get_config(n) for n in names}
    if args.reduced:
        configs = {n: small(c) for n, c in configs.items()}
    if args.image:
        height, width = (int(n) for n in args.image.split("x"))
        configs = {n: resized(c, (height, width)) for n, c in configs.items()}
    out = Path(args.out)
    document: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"models": {}}
    document["about"] = about(args.device, args.workers, args.threads)
    models = document["models"]

    def write() -> None:
        part = out.with_suffix(".part")
        part.write_text(json.dumps(document, indent=1, default=str) + "\n")
        part.replace(out)

    parts = args.parts.split(",")
    pool = ProcessPoolExecutor(args.workers, mp_context=torch.multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, Future[dict[str, Part]]] = {}
        if "export" in parts:
            # The longest first.
            for name in sorted(names, key=_work, reverse=True):
                jobs[name] = pool.submit(
                    export_and_roll,
                    configs[name],
                    0 if name in args.export_only.split(",") else args.frames,
                    args.threads,
                    folder,
                )
        for name in sorted(names, key=lambda n: (n not in BATCHES, -_work(n))):
            row = models.setdefault(name, {})
            config = configs[name]
            if "inference" in parts:
                row["inference"] = attempt(
                    f"{name} inference", lambda c=config: inference(c, args.device, args.repeat)
                )
            if "training" in parts:
                row["training"] = [
                    attempt(
                        f"{name} training",
                        lambda c=config, b=batch: training(c, args.device, b, args.repeat),
                    )
                    for batch in BATCHES.get(name, (None,))
                ]
            write()
        for name, job in jobs.items():
            row = models.setdefault(name, {})
            row.update(job.result())
            shown = {
                k: {i: v for i, v in row[k].items() if i != "result"}
                for k in ("export", "onnxruntime")
                if k in row
            }
            print(name, shown, flush=True)
            write()
    pool.shutdown()
    return 0


def _work(name: str) -> int:
    """A guess at the FLOPs, for order alone."""
    config = s4d_core.get_config(name)
    height, width = config.image.size
    depth = 10 if isinstance(config.backbone, s4d_core.EvaConfig) else 2
    return height * width * depth


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
