"""Deformable aggregation on the torch dispatcher: ``torch.ops.s4d.deformable_aggregation``.

Importing this module loads the native library (built on libtorch's stable ABI, so one binary
serves torch 2.11 and later) and registers shapes and gradients. The op works under
``torch.compile`` and ``torch.export`` as one node.

Autocast: the op has no autocast rule, on purpose. Features in float16 or bfloat16 stay so,
locations and weights are taken in the type they come in, and all sums are float32.
"""

from __future__ import annotations

from ._libraries import library_path
from .errors import InvalidInputError, MissingLibraryError

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingLibraryError(
        f"s4d_ops.torch needs torch 2.11 or later, which cannot be imported ({error}); install it "
        "with: pip install 's4d-ops[torch]'"
    ) from error

__all__ = ["deformable_aggregation"]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _load(device: str) -> str | None:
    """Loads one library of the torch door; returns why it could not be loaded."""
    try:
        torch.ops.load_library(library_path("torch", device))
    except MissingLibraryError as error:
        return str(error)
    except OSError as error:
        return f"the torch library of s4d-ops for {device} cannot be loaded: {error}"
    return None


_cpu_problem = _load("cpu")
if _cpu_problem is not None:
    raise MissingLibraryError(_cpu_problem)
if torch.version.cuda is None:
    _cuda_problem: str | None = f"torch {torch.__version__} is a build without CUDA"
else:
    _cuda_problem = _load("cuda")


def deformable_aggregation(
    features: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sum of weighted bilinear samples over points, views and levels.

    Args:
        features: (B, F, C), rows camera-major, then level, then row-major pixels. float32,
            float16, bfloat16 (computed in float32) or float64.
        spatial_shapes: (N, L, 2) int32 or int64, (height, width).
        level_start_index: (N, L) of the same type, first feature row of each level.
        sampling_locations: (B, A, P, N, 2), (x, y) with 0..1 over the image.
        weights: (B, A, P, N, L, G). Channel c takes group c // (C / G).

    All on one device. Locations and weights may have another type than the features, but with
    float64 all three are float64.

    Returns:
        (B, A, C) in the type of ``features``. The forward pass gives the same bits in every run;
        on the CPU, also for any number of threads, and so does the backward pass.

    A point counts only if 0 < x < 1 and 0 < y < 1; NaN and infinite locations therefore add
    nothing to the result or to a gradient. Inside, the sample is taken at pixel
    (x * width - 0.5, y * height - 0.5), with zeros around the map. Differentiable once, by
    features, locations and weights.

    Raises:
        InvalidInputError: shapes or types that do not belong together.
        MissingLibraryError: CUDA tensors, and the CUDA library is not there.
    """
    if not torch.compiler.is_compiling():
        _check(features, spatial_shapes, level_start_index, sampling_locations, weights)
    if features.device.type == "cuda" and _cuda_problem is not None:
        raise MissingLibraryError(f"features are on a CUDA device, but {_cuda_problem}")
    return torch.ops.s4d.deformable_aggregation(
        features, spatial_shapes, level_start_index, sampling_locations, weights
    )


def _check(
    features: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> None:
    """The checks of the core, as a named error. The core repeats them."""
    problem = None
    if features.dim() != 3 or locations.dim() != 5 or weights.dim() != 6:
        problem = (
            "expected features (B, F, C), sampling_locations (B, A, P, N, 2) and weights "
            "(B, A, P, N, L, G)"
        )
    elif spatial_shapes.dim() != 3 or tuple(level_start_index.shape) != spatial_shapes.shape[:2]:
        problem = "expected spatial_shapes (N, L, 2) and level_start_index (N, L)"
    else:
        views, levels = spatial_shapes.shape[:2]
        lead = (features.shape[0], *locations.shape[1:3], views)
        if locations.shape != (*lead, 2) or weights.shape[:5] != (*lead, levels):
            problem = "expected the same B, A, P, N and L in every input"
        elif weights.shape[5] == 0 or features.shape[2] % weights.shape[5]:
            problem = "expected a number of channels that the groups divide"
    if problem is None:
        values = (features, locations, weights)
        if any(value.dtype not in _FLOATS for value in values):
            problem = "expected float features, sampling_locations and weights"
        elif len({value.dtype == torch.float64 for value in values}) != 1:
            problem = "expected all of features, sampling_locations, weights in float64, or none"
        elif spatial_shapes.dtype not in (torch.int32, torch.int64) or (
            level_start_index.dtype != spatial_shapes.dtype
        ):
            problem = "expected spatial_shapes and level_start_index both int32 or both int64"
    everything = (features, spatial_shapes, level_start_index, locations, weights)
    if problem is None and len({value.device for value in everything}) != 1:
        problem = "expected all inputs on one device"
    if problem is not None:
        got = "; ".join(f"{tuple(v.shape)} {v.dtype} on {v.device}" for v in everything)
        raise InvalidInputError(f"deformable_aggregation: {problem}; got, in order: {got}")


@torch.library.register_fake("s4d::deformable_aggregation")
def _forward_shape(features, spatial_shapes, level_start_index, sampling_locations, weights):  # type: ignore[no-untyped-def]
    return features.new_empty(features.shape[0], sampling_locations.shape[1], features.shape[2])


@torch.library.register_fake("s4d::deformable_aggregation_backward")
def _backward_shapes(  # type: ignore[no-untyped-def]
    grad_output,
    features,
    spatial_shapes,
    level_start_index,
    sampling_locations,
    weights,
    need_features,
    need_locations,
    need_weights,
    deterministic,
):
    wanted = (
        (features, need_features),
        (sampling_locations, need_locations),
        (weights, need_weights),
    )
    return tuple(
        value.new_empty(value.shape) if needed else value.new_empty(0) for value, needed in wanted
    )


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad_output):  # type: ignore[no-untyped-def]
    needs = ctx.needs_input_grad
    wanted = (needs[0], needs[3], needs[4])
    gradients = torch.ops.s4d.deformable_aggregation_backward(
        grad_output,
        *ctx.saved_tensors,
        *wanted,
        torch.are_deterministic_algorithms_enabled(),
    )
    features, locations, weights = (
        gradient if needed else None for gradient, needed in zip(gradients, wanted, strict=True)
    )
    return features, None, None, locations, weights


def _no_second_derivative(ctx, *grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError("s4d::deformable_aggregation is differentiable only once")


torch.library.register_autograd("s4d::deformable_aggregation", _gradients, setup_context=_save)
torch.library.register_autograd("s4d::deformable_aggregation_backward", _no_second_derivative)
