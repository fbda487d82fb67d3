"""What ``manifest.json`` says, as typed structs, and the rules that it must obey."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import msgspec

from ..errors import ArtifactFormatError, ManifestError

__all__ = [
    "ARTIFACT_FORMAT",
    "MANIFEST_NAME",
    "Manifest",
    "Member",
    "Preprocessing",
    "TensorSpec",
    "Thresholds",
    "check_manifest",
    "decode_manifest",
    "encode_manifest",
]

ARTIFACT_FORMAT = 1
MANIFEST_NAME = "manifest.json"
MAX_TENSOR_BYTES = 1 << 31  # a declared tensor larger than 2 GiB is a mistake or an attack
MODEL_MEMBER = {"onnx": "model.onnx", "engine": "model.engine"}

DType = Literal["uint8", "int32", "int64", "float16", "float32"]
ITEM_SIZE = {"uint8": 1, "int32": 4, "int64": 8, "float16": 2, "float32": 4}

# The graph contract: names that every artifact has, with what can be said about them.
# N, H, W come from the preprocessing table, K is free.
FIXED_INPUTS = ("images", "lidar2img", "prev_to_current", "time_interval", "state_valid")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph input or output: its name, element type and fixed shape."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How raw camera images become the graph's ``images``.

    ``image_size`` is the network's (H, W); ``resize_filter`` one of ``s4d_ops.image.FILTERS``;
    ``camera_names`` the order of the cameras.
    """

    image_size: tuple[int, int]
    resize_filter: Literal["pillow_bicubic", "pillow_bilinear", "cv2_linear"]
    camera_names: tuple[str, ...]


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers that the runtime applies.

    ``max_time_interval`` (s): a longer gap between frames is a reset. ``default_time_interval``
    (s): what the graph uses when there is no usable past. ``tracking_threshold``: tracks with a
    lower score are left out of tracking results.
    """

    max_time_interval: float = 2.0
    default_time_interval: float = 0.5
    tracking_threshold: float = 0.2


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file inside the artifact: SHA-256 in hex, size in bytes."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a runtime must know before it touches the model.

    ``model`` is the architecture config of s4d-core as a plain dict. ``state`` maps each state
    input to the output that feeds it on the next frame. ``created`` is ISO 8601, UTC.
    ``members`` is filled in by ``write_artifact``.
    """

    name: str
    created: str
    versions: dict[str, str]
    model: dict[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: dict[str, str]
    thresholds: Thresholds
    precision: Literal["fp32", "fp16", "int8"]
    op: Literal["plugin", "standard"]
    opset: int
    kind: Literal["onnx", "engine"] = "onnx"
    members: dict[str, Member] = {}
    format: int = ARTIFACT_FORMAT

    @property
    def model_member(self) -> str:
        """Name of the member that holds the network."""
        return MODEL_MEMBER[self.kind]


class _Head(msgspec.Struct):
    format: Any = None
    kind: Any = None


def decode_manifest(data: bytes) -> Manifest:
    """Parse and check ``manifest.json``.

    Raises:
        ArtifactFormatError: another format number than ``ARTIFACT_FORMAT``.
        ManifestError: not JSON, a field is missing, unknown or of the wrong type, or
            ``check_manifest`` objects; it is a LiDAR encoder's.
    """
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"the manifest is not a JSON object: {error}") from None
    if type(head.format) is not int or head.format != ARTIFACT_FORMAT:
        raise ArtifactFormatError(
            f"expected artifact format {ARTIFACT_FORMAT}, got {_short(head.format)}; "
            "export the model again or install a matching s4d-runtime"
        )
    if head.kind == "lidar":
        raise ManifestError(
            "expected a camera model, this is a LiDAR encoder; `s4d-run lidar` and "
            "s4d_runtime.lidar.SparseEngine run it, `s4d-run inspect` shows it"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"the manifest does not fit its format: {error}") from None
    check_manifest(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as readable JSON; the same manifest gives the same bytes."""
    try:
        return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ManifestError(f"the manifest cannot be written as JSON: {error}") from None


def check_manifest(manifest: Manifest) -> None:
    """Check everything about a manifest that its types do not say.

    Raises:
        ManifestError: with the first rule that is broken.
    """
    if manifest.format != ARTIFACT_FORMAT:
        raise ArtifactFormatError(
            f"expected artifact format {ARTIFACT_FORMAT}, got {_short(manifest.format)}"
        )
    _require(bool(manifest.name.strip()), "expected a name, got an empty one")
    _check_names("class_names", manifest.class_names)
    _check_names("camera_names", manifest.preprocessing.camera_names)
    _require(1 <= manifest.opset <= 1000, f"expected a positive opset, got {manifest.opset}")
    height, width = manifest.preprocessing.image_size
    _require(
        1 <= height <= 16384 and 1 <= width <= 16384,
        f"expected image_size (H, W) within 1..16384, got {_short((height, width))}",
    )
    limits = manifest.thresholds
    for key in ("max_time_interval", "default_time_interval"):
        value = getattr(limits, key)
        _require(
            math.isfinite(value) and 0 < value <= 3600,
            f"expected {key} within 0..3600 s, got {_short(value)}",
        )
    _require(
        0 <= limits.tracking_threshold <= 1,
        f"expected tracking_threshold within 0..1, got {_short(limits.tracking_threshold)}",
    )
    inputs = _table("input", manifest.inputs)
    outputs = _table("output", manifest.outputs)
    _check_graph(manifest, inputs, outputs)
    _check_state(manifest.state, inputs, outputs)
    for name, member in manifest.members.items():
        _require(
            re.fullmatch(r"[0-9a-f]{64}", member.sha256) is not None and member.size >= 0,
            f"expected a SHA-256 in hex and a size for member {_short(name)}",
        )


def _check_names(label: str, names: tuple[str, ...]) -> None:
    _require(
        0 < len(names) <= 1000 and all(n.strip() for n in names) and len({*names}) == len(names),
        f"expected {label} to be 1..1000 different, non-empty names, got {_short(names)}",
    )


def _table(label: str, specs: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
    """Tensors by name, each with a sane shape."""
    table: dict[str, TensorSpec] = {}
    for spec in specs:
        _require(
            re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", spec.name) is not None,
            f"expected {label} names of letters, digits and '_', got {_short(spec.name)}",
        )
        _require(spec.name not in table, f"{label} {spec.name!r} is declared twice")
        _require(
            len(spec.shape) <= 8 and all(0 < d <= MAX_TENSOR_BYTES for d in spec.shape),
            f"expected {label} {spec.name!r} to have at most 8 positive dimensions, "
            f"got {_short(spec.shape)}",
        )
        _require(
            spec.nbytes <= MAX_TENSOR_BYTES,
            f"{label} {spec.name!r} of shape {_short(spec.shape)} is larger than 2 GiB",
        )
        table[spec.name] = spec
    return table


def _check_graph(
    manifest: Manifest, inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]
) -> None:
    """The names, types and shapes of the graph contract (DESIGN: numbers and layouts)."""
    cameras = len(manifest.preprocessing.camera_names)
    boxes = outputs.get("boxes")
    count = boxes.shape[0] if boxes is not None and boxes.shape else 0
    expected_inputs: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": ("uint8", (cameras, *manifest.preprocessing.image_size, 3)),
        "lidar2img": ("float32", (cameras, 4, 4)),
        "prev_to_current": ("float32", (4, 4)),
        "time_interval": ("float32", (1,)),
        "state_valid": ("int32", (1,)),
    }
    expected_outputs: dict[str, tuple[str, tuple[int, ...]]] = {
        "boxes": ("float32", (count, 10)),
        "scores": ("float32", (count,)),
        "labels": ("int32", (count,)),
        "track_ids": ("int32", (count,)),
    }
    for label, table, expected in (
        ("input", inputs, expected_inputs),
        ("output", outputs, expected_outputs),
    ):
        for name, (dtype, shape) in expected.items():
            spec = table.get(name)
            _require(spec is not None, f"{label} {name!r} is not declared")
            assert spec is not None
            _require(
                spec.dtype == dtype and spec.shape == shape,
                f"expected {label} {name!r} to be {dtype} {shape}, "
                f"got {spec.dtype} {_short(spec.shape)}",
            )


def _check_state(
    state: dict[str, str], inputs: dict[str, TensorSpec], outputs: dict[str, TensorSpec]
) -> None:
    """Every state input is fed by exactly one output of its type and shape, and none is left."""
    wanted = {name for name in inputs if name not in FIXED_INPUTS}
    offered = {name for name in outputs if name.startswith("next_")}
    for name in wanted | {*state}:
        _require(
            name in wanted and name.startswith("state_"),
            f"the state map names {_short(name)}, which is not a state input"
            if name in state
            else f"input {_short(name)} is neither of the contract nor a state entry 'state_*'",
        )
        _require(name in state, f"state input {name!r} has no entry in the state map")
    _require(
        sorted(state.values()) == sorted(offered),
        f"expected the state map to use every 'next_*' output once ({_short(sorted(offered))}), "
        f"got {_short(sorted(state.values()))}",
    )
    for name, source in state.items():
        a, b = inputs[name], outputs[source]
        _require(
            a.dtype == b.dtype and a.shape == b.shape,
            f"state input {name!r} is {a.dtype} {a.shape}, but its source {source!r} is "
            f"{b.dtype} {b.shape}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ManifestError(f"manifest: {message}")


def _short(value: object) -> str:
    """A value for an error message: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
