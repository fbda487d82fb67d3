"""The process that talks to TensorRT: ``python -m s4d_export.engine._trt_worker FOLDER``.

Reads ``model.onnx`` and ``order.json`` in FOLDER, writes ``model.engine`` and ``answer.json``.
Imports nothing of s4d: it must live with whatever TensorRT needs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class BuildError(Exception):
    """One sentence for the caller."""


def main(folder: Path) -> None:
    """Build, and answer in any case."""
    order = json.loads((folder / "order.json").read_text())
    try:
        answer = build(folder, order)
    except BuildError as error:
        answer = {"error": str(error)}
    part = folder / "answer.part"
    part.write_text(json.dumps(answer))
    part.replace(folder / "answer.json")


def load_tensorrt() -> ModuleType:
    """The full package, else the bindings alone."""
    reasons = []
    for name in ("tensorrt", "tensorrt_bindings"):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(f"{name}: {error}")
    raise BuildError(
        "TensorRT is not usable here; install the package tensorrt on a machine with an NVIDIA "
        f"GPU ({'; '.join(reasons)[:300]})"
    )


def build(folder: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Parse and build; returns the build log."""
    trt = load_tensorrt()
    major = int(trt.__version__.split(".")[0])
    if major not in order["majors"]:
        expected = " or ".join(str(number) for number in order["majors"])
        name = order["target"] or "this machine"
        raise BuildError(f"expected TensorRT {expected} for {name}, got {trt.__version__}")
    logger = make_logger(trt)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise BuildError(
            f"TensorRT {trt.__version__} cannot start a build; it needs an NVIDIA GPU and driver "
            f"({logger.last_error() or error})"
        ) from None
    config = builder.create_builder_config()
    if order["plugin"]:
        register_plugin(trt, builder, config, order)
    # Strongly typed: the only kind of network in TensorRT 11, a flag in 10.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse((folder / "model.onnx").read_bytes()):
        count = parser.num_errors
        first = str(parser.get_error(0)) if count else logger.last_error()
        raise BuildError(f"TensorRT {trt.__version__} cannot parse the graph: {one_line(first)}")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order["workspace_mib"] << 20)
    if order["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if order["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    layers = describe_layers(network)
    cache = load_cache(config, order["timing_cache"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(
            f"TensorRT {trt.__version__} built no engine: {one_line(logger.last_error())}"
        )
    (folder / "model.engine").write_bytes(memoryview(plan))
    if cache is not None:
        save_cache(config, order["timing_cache"])
    return {
        "tensorrt": trt.__version__,
        "engine_bytes": (folder / "model.engine").stat().st_size,
        "options": order,
        "warnings": logger.warnings,
        "layers": layers,
    }


def make_logger(trt: ModuleType) -> Any:
    """A logger that keeps warnings and errors. The class exists only once TensorRT is loaded."""

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)
            elif severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else ""

    return Logger()


def register_plugin(trt: ModuleType, builder: Any, config: Any, order: dict[str, Any]) -> None:
    """Make the operator library known, and serialise it with the engine if asked."""
    try:
        handle = builder.get_plugin_registry().load_library(order["plugin"])
    except (RuntimeError, OSError) as error:
        raise BuildError(f"the plugin library cannot be loaded: {one_line(str(error))}") from None
    if handle is None:
        raise BuildError(
            f"TensorRT {trt.__version__} cannot load the plugin library "
            f"{Path(order['plugin']).name}; it must be built for this major version"
        )
    if order["embed_plugin"]:
        config.plugins_to_serialize = [order["plugin"]]


def describe_layers(network: Any) -> list[dict[str, Any]]:
    """Name, kind and result types of every layer, as typed by the graph."""
    result = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        result.append(
            {
                "name": layer.name,
                "kind": str(layer.type).rsplit(".", 1)[-1],
                "types": [str(o.dtype).rsplit(".", 1)[-1] for o in outputs if o is not None],
            }
        )
    return result


def load_cache(config: Any, path: str | None) -> Any:
    """Use the timing cache in a file; an absent or empty file is a new cache."""
    if path is None:
        return None
    data = Path(path).read_bytes() if Path(path).is_file() else b""
    cache = config.create_timing_cache(data)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def save_cache(config: Any, path: str) -> None:
    part = Path(f"{path}.part")
    part.write_bytes(memoryview(config.get_timing_cache().serialize()))
    os.replace(part, path)


def one_line(text: str) -> str:
    """First informative line of a message, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:400] if lines else "no reason was given"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
