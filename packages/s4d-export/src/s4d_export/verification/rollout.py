"""One model through many frames, its state fed back: in torch, and through the runtime's engine."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from s4d_core import FrameOutput, Sparse4D, Sparse4DConfig
from s4d_runtime.artifact import Artifact
from s4d_runtime.backends import load_backend

from ..frames import GraphFrame, frame_inputs
from ..graph.contract import graph_contract
from ..graph.deployed import DeployedModel
from ..graph.session import GraphSession
from .cuts import frame_cuts

__all__ = ["EngineRunner", "Outputs", "Recorded", "Runner", "TorchRunner", "record_feeds"]

Outputs = dict[str, NDArray[Any]]


class Runner(Protocol):
    """A program that takes a frame and gives all outputs of the graph contract."""

    name: str
    milliseconds: list[float]

    def step(self, frame: GraphFrame) -> Outputs: ...


class TorchRunner:
    """The PyTorch model in eval mode, float32, on the CPU or a CUDA device."""

    def __init__(self, model: Sparse4D, device: str = "cpu") -> None:
        self.name = f"torch-{device}"
        self.milliseconds: list[float] = []
        self._device = device
        self._model = DeployedModel(model).eval().to(device)
        self._config = model.config
        contract = self._model.contract
        self._contract = contract
        shapes = {spec.name: spec for spec in contract.inputs}
        self._state = {
            name: torch.zeros(
                shapes[name].shape, dtype=getattr(torch, shapes[name].dtype), device=device
            )
            for name in contract.state
        }
        self._previous: GraphFrame | None = None

    @torch.no_grad()
    def step(self, frame: GraphFrame) -> Outputs:
        """Run one frame and keep the next state; ``cuts.frame_cuts`` comes with the outputs."""
        inputs = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
            for name, value in frame_inputs(frame, self._previous).items()
        }
        decided: list[FrameOutput] = []
        watch = self._model.model.head.register_forward_hook(lambda *seen: decided.append(seen[2]))
        start = time.perf_counter()
        try:
            results = self._model(*inputs.values(), *self._state.values())
        finally:
            watch.remove()
        outputs = dict(zip((s.name for s in self._contract.outputs), results, strict=True))
        host = {name: value.cpu().numpy() for name, value in outputs.items()}
        self.milliseconds.append((time.perf_counter() - start) * 1e3)
        self._state = {name: outputs[source] for name, source in self._contract.state.items()}
        self._previous = frame
        if len(decided) == 1:  # a model that looks ahead goes through its head more often
            host.update(frame_cuts(decided[0], self._config))
        return host


class Recorded:
    """A roll-out made once and compared with several others."""

    def __init__(
        self, runner: Runner, frames: Sequence[GraphFrame], progress: bool = False
    ) -> None:
        bar = tqdm(frames, desc=runner.name, unit="frame", disable=not progress)
        self._results = [runner.step(frame) for frame in bar]
        self.name = runner.name
        self.milliseconds = runner.milliseconds
        self._next = 0

    def rewind(self) -> None:
        """Begin again with the first frame."""
        self._next = 0

    def step(self, frame: GraphFrame) -> Outputs:
        """The results of the next frame; `frame` is that of the recording."""
        self._next += 1
        return self._results[self._next - 1]


def record_feeds(
    graph: onnx.ModelProto, config: Sparse4DConfig, frames: Iterable[GraphFrame]
) -> list[dict[str, NDArray[Any]]]:
    """All inputs of the float32 graph, state included, for every frame of its own roll-out."""
    contract = graph_contract(config)
    session = GraphSession(graph)
    state = {
        spec.name: np.zeros(spec.shape, spec.dtype)
        for spec in contract.inputs
        if spec.name in contract.state
    }
    feeds, previous = [], None
    for frame in frames:
        feeds.append({**frame_inputs(frame, previous), **state})
        results = session.run(feeds[-1])
        state = {name: results[source] for name, source in contract.state.items()}
        previous = frame
    return feeds


class EngineRunner:
    """An artifact on one of the runtime's engines: the code that runs on board.

    The engine keeps its state; it is read back after every frame for the comparison.
    """

    def __init__(self, artifact: Artifact, backend: str = "auto", threads: int = 0) -> None:
        self._engine, self.choice = load_backend(artifact, backend, threads)
        self.name = self._engine.name
        self.milliseconds: list[float] = []
        self._state = dict(artifact.manifest.state)
        self._engine.clear_state()
        self._previous: GraphFrame | None = None

    def step(self, frame: GraphFrame, state: Mapping[str, NDArray[Any]] | None = None) -> Outputs:
        """Run one frame and make its state current.

        Args:
            state: what to start from instead of the engine's own state, by input name.
        """
        for name, value in (state or {}).items():
            self._engine.write_state(name, value)
        for name, value in frame_inputs(frame, self._previous).items():
            self._engine.buffer(name)[...] = value
        start = time.perf_counter()
        results = self._engine.run()
        self.milliseconds.append((time.perf_counter() - start) * 1e3)
        outputs = {name: value.copy() for name, value in results.items()}
        self._engine.commit()
        for name, source in self._state.items():
            outputs[source] = self._engine.read_state(name)
        self._previous = frame
        return outputs

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine.close()
