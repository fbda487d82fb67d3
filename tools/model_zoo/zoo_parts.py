"""What `model_zoo.py` measures of one model: inference, training steps, export and roll-out."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from zoo_models import frame, prepared

import s4d_core
from s4d_core import Sparse4DConfig
from s4d_export import build_manifest, export_graph, random_frames, save_artifact
from s4d_export.verification.comparison import TOLERANCES, Comparison
from s4d_export.verification.rollout import EngineRunner, Recorded, TorchRunner
from s4d_runtime.artifact import read_artifact

__all__ = ["OBJECTS", "Part", "export_and_roll", "inference", "training"]

OBJECTS = 35
Part = dict[str, Any]


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
    shown = [frame(config, device, i) for i in range(2)]
    result: Part = {}
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        state = None
        with torch.no_grad(), torch.autocast(device, dtype or torch.bfloat16, dtype is not None):
            if config.queue is not None and config.queue.frames == "future":
                # Maps of later frames: each is computed once and looked at from several.
                future = [
                    model.observe(
                        **{k: v for k, v in frame(config, device, 9 + i).items() if k != "image_wh"}
                    )
                    for i in range(config.queue.length)
                ]
            times = []
            for i in range(frames + 3):
                wait(device)
                if i == 3 and device == "cuda":  # without the trials of the first convolutions
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                given = {**shown[i % 2]}
                given["timestamp"] = torch.full_like(given["timestamp"], 0.5 * min(i, 8))
                output = model(**given, state=state, future=future)
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
    args = argparse.Namespace(
        objects=OBJECTS,
        steps=steps,
        warmup=3 if device == "cuda" else 1,
        overrides=[],
        profile=False,
        rows=0,
    )
    with started("" if device == "cuda" else device) as ranks:
        found = tool.measure(recipe, ranks, args)
    shutil.rmtree(start)
    if not math.isfinite(found["loss"]):
        raise RuntimeError(f"the loss is {found['loss']}")
    return {
        "batch": found["batch_per_rank"],
        "seconds": found["seconds_per_step"],
        "gb": found["memory_gb"] if device == "cuda" else None,
        "loss": found["loss"],
        "precision": recipe.run.precision,
        "checkpointing": recipe.model.checkpointing,
    }


def export_and_roll(
    config: Sparse4DConfig,
    device: str,
    engines: Sequence[str],
    frames: int,
    threads: int,
    done: Callable[[str, Part], None],
) -> None:
    """Export with the plug-in operator, then engines of the runtime against torch, state fed back.

    Torch runs on `device` in float32, TF32 off; once more in float64, which shows how much of a
    difference is rounding. `done` is given each part as it is there.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = prepared(config, device).cpu()
    start = time.perf_counter()
    graph = export_graph(model, "plugin")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{config.name}.s4d"
        save_artifact(path, graph, build_manifest(config, config.name, "plugin", "fp32"))
        done(
            "export",
            {
                "seconds": time.perf_counter() - start,
                "megabytes": path.stat().st_size / 1e6,
                "nodes": len(graph.graph.node),
            },
        )
        del graph
        if config.queue is not None and config.queue.frames == "future":
            frames += config.queue.length  # the graph answers that many frames later
        shown = list(random_frames(config, frames))
        expected = Recorded(TorchRunner(model, device), shown)
        for name in engines:
            with read_artifact(path) as opened:
                engine = EngineRunner(opened, name, threads)
            got = Recorded(engine, shown)
            engine.close()
            result = _compared(expected, got, shown)
            done(
                name,
                {
                    "frames": frames,
                    "reference": expected.name,
                    "seconds_per_frame": min(engine.milliseconds) / 1e3,
                    "passed": result["passed"],
                    "difference": _difference(result),
                    "result": result,
                },
            )
    with s4d_core.use_reference_op():
        exact = Recorded(_in_float64(TorchRunner(model, device)), shown)
    done("rounding", {"difference": _difference(_compared(exact, expected, shown))})


def _in_float64(runner: TorchRunner) -> TorchRunner:
    """The runner with all weights, inputs and state in float64."""
    runner._model.double()
    runner._state = {k: _double(v) for k, v in runner._state.items()}
    runner._model.register_forward_pre_hook(lambda _, given: tuple(_double(v) for v in given))
    return runner


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _compared(expected: Recorded, got: Recorded, shown: list[Any]) -> dict[str, Any]:
    """Differences over all frames with the limits of float32."""
    comparison = Comparison(TOLERANCES["fp32"])
    expected.rewind()
    got.rewind()
    for given in shown:
        comparison.add(expected.step(given), got.step(given))
    return comparison.result()


def _difference(result: dict[str, Any]) -> str:
    """Largest differences of scores and boxes, and why the comparison fails where it does."""
    scores, boxes = (result["tensors"][name]["max"] for name in ("scores", "boxes"))
    text = f"{scores:.0e}, {boxes:.0e}"
    return text if result["passed"] else f"{text} (fails: {'; '.join(result['reasons'])})"


def _package(name: str) -> Path:
    return Path(__file__).resolve().parents[2] / "packages" / name


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
