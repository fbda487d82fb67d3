"""Choose an engine by name, or the best that works here, and say why."""

from __future__ import annotations

from ..artifact import Artifact
from ..errors import BackendUnavailableError
from .base import Backend, EngineOptions
from .onnxruntime_cpu import OnnxRuntimeCpu
from .onnxruntime_cuda import OnnxRuntimeCuda
from .tensorrt import TensorRT

__all__ = ["BACKENDS", "load_backend"]

# Best first: "auto" takes the first that can run the artifact.
BACKENDS: tuple[type[Backend], ...] = (TensorRT, OnnxRuntimeCuda, OnnxRuntimeCpu)


def load_backend(
    artifact: Artifact,
    name: str = "auto",
    threads: int = 0,
    options: EngineOptions | None = None,
) -> tuple[Backend, str]:
    """Load the artifact's model.

    Args:
        artifact: an open artifact.
        name: ``"auto"``, the full name of an engine (``"onnxruntime-cpu"``), or its family
            (``"onnxruntime"``), which takes the first of the family that works.
        threads: CPU threads, 0 for the engine's choice. Ignored where ``options`` are given.
        options: all settings.

    Returns:
        The backend, and one line that says what was chosen and why not the others.

    Raises:
        BackendUnavailableError: unknown name, or none can run the artifact here.
        BackendError: the engine refused the model.
    """
    known = ", ".join(("auto", *(b.name for b in BACKENDS)))
    candidates = [
        b for b in BACKENDS if name == "auto" or b.name == name or b.name.startswith(f"{name}-")
    ]
    if not candidates:
        raise BackendUnavailableError(f"expected a backend of {known}, got {name!r}")
    reasons: list[str] = []
    for backend in candidates:
        reason = backend.why_not(artifact.manifest)
        if reason is None:
            try:
                loaded = backend.load(artifact, options or EngineOptions(threads))
            except BackendUnavailableError as error:  # what it needs is missing: try the next
                reason = str(error)
            else:
                how = f" ({loaded.details})" if loaded.details else ""
                return loaded, "; ".join((f"{backend.name} chosen{how}", *reasons))
        reasons.append(f"{backend.name}: {reason}")
    if len(candidates) == 1:
        raise BackendUnavailableError(f"{candidates[0].name} cannot run here: {reason}")
    raise BackendUnavailableError(f"no backend can run {artifact.path.name}: {'; '.join(reasons)}")
