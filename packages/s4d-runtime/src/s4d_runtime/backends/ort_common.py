"""What ONNX Runtime's two backends share: the operator library, and the check of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..artifact import Manifest
from ..errors import BackendUnavailableError, ManifestError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["DISABLED_OPTIMIZERS", "check_session", "first_line", "register_plugin"]

# It stores a bias as int32 with the product of the input's and the weights' scales. In half
# precision that product underflows, and an int8 convolution of an fp16 graph loses its bias.
DISABLED_OPTIMIZERS = ("WeightBiasQuantization",)

_ORT_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}


def register_plugin(options: ort.SessionOptions, device: str) -> None:
    """Give ONNX Runtime the library with ``s4d::DeformableAggregation``.

    Raises:
        BackendUnavailableError: the library is absent or does not load.
    """
    from s4d_ops import S4DError, library_path

    try:
        options.register_custom_ops_library(library_path("onnxruntime", device))
    except S4DError as error:
        raise BackendUnavailableError(
            f"this artifact needs the operator library of s4d-ops: {error}; "
            "or export it with --op standard"
        ) from None
    except Exception as error:
        raise BackendUnavailableError(
            f"ONNX Runtime cannot load the operator library of s4d-ops: {first_line(error)}"
        ) from None


def check_session(session: ort.InferenceSession, manifest: Manifest) -> None:
    """The graph's inputs and outputs must be the manifest's.

    Raises:
        ManifestError: with the first difference.
    """
    for label, nodes, specs in (
        ("input", session.get_inputs(), manifest.inputs),
        ("output", session.get_outputs(), manifest.outputs),
    ):
        found = {n.name: (_ORT_TYPES.get(n.type, n.type), _shape(n.shape)) for n in nodes}
        declared = {t.name: (t.dtype, t.shape) for t in specs}
        for name in sorted({*found} | {*declared}):
            if found.get(name) != declared.get(name):
                raise ManifestError(
                    f"the manifest declares {label} {name!r} as {declared.get(name)}, "
                    f"the graph has {found.get(name)}; export the model again"
                )


def _shape(shape: list[Any]) -> tuple[Any, ...]:
    return tuple(d if isinstance(d, int) else str(d) for d in shape)


def first_line(error: Exception) -> str:
    """The beginning of an engine's message."""
    return str(error).strip().split("\n")[0][:300]
