"""Where the native libraries lie, and what to say when one is absent."""

from __future__ import annotations

from pathlib import Path

from .errors import InvalidInputError, MissingLibraryError

LIBRARY_DIR = Path(__file__).resolve().parent / "lib"

_BUILD_HINT = (
    "This build of s4d-ops was made without it; see 'Build switches' in the package's README"
)

# kind, device -> (file name without suffix, the switch that builds it)
_LIBRARIES = {
    ("torch", "cpu"): ("libs4d_torch_cpu", "S4D_TORCH=ON"),
    ("torch", "cuda"): ("libs4d_torch_cuda", "S4D_TORCH=ON S4D_CUDA=ON"),
    ("onnxruntime", "cpu"): ("libs4d_ort_cpu", "S4D_ORT=ON"),
    ("onnxruntime", "cuda"): ("libs4d_ort_cuda", "S4D_ORT=ON S4D_CUDA=ON"),
    ("tensorrt", "cuda"): ("libs4d_trt", "S4D_TENSORRT=ON S4D_CUDA=ON"),
}


def library_path(kind: str, device: str | None = None) -> str:
    """Path of the shared library to hand to a runtime.

    Args:
        kind: ``"onnxruntime"`` (for ``SessionOptions.register_custom_ops_library``),
            ``"tensorrt"`` (for ``IPluginRegistry.load_library``) or ``"torch"``
            (for ``torch.ops.load_library``; importing ``s4d_ops.torch`` does it).
        device: ``"cpu"`` or ``"cuda"``. Default: ``"cuda"`` for TensorRT, else ``"cpu"``.

    TensorRT libraries are one per major version, because their binary interfaces differ. The one
    of the installed ``tensorrt`` package is chosen; without that package the newest one built.

    Raises:
        InvalidInputError: unknown kind or device.
        MissingLibraryError: the library is not part of this installation. The message names the
            build switch that adds it.
    """
    if device is None:
        device = "cuda" if kind == "tensorrt" else "cpu"
    entry = _LIBRARIES.get((kind, device))
    if entry is None:
        known = ", ".join(f"{k} on {d}" for k, d in sorted(_LIBRARIES))
        raise InvalidInputError(f"no library for {kind!r} on {device!r}; there are: {known}")
    stem, switch = entry
    for candidate in _tensorrt_names(stem) if kind == "tensorrt" else [stem]:
        path = LIBRARY_DIR / f"{candidate}.so"
        if path.is_file():
            return str(path)
    raise MissingLibraryError(
        f"the {kind} library for {device} ({stem}*.so) is not in {LIBRARY_DIR.name}/ of s4d_ops. "
        f"{_BUILD_HINT}: build with {switch}"
    )


def _tensorrt_names(stem: str) -> list[str]:
    """File names to try, best first: the installed TensorRT's major version only, if known."""
    from importlib import metadata

    for package in ("tensorrt", "tensorrt_lean", "tensorrt_dispatch"):
        try:
            return [stem + metadata.version(package).split(".")[0]]
        except metadata.PackageNotFoundError:
            continue
    found = LIBRARY_DIR.glob(f"{stem}[0-9]*.so")
    return [p.stem for p in sorted(found, key=lambda p: int(p.stem[len(stem) :]), reverse=True)]
