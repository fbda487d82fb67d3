"""Calls of the sparse torch operators with named errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from . import torch as _door  # loads the library
from .errors import InvalidInputError, MissingLibraryError

__all__ = ["call", "check_device", "has_kernel"]


def call(function: str, *arguments: Any) -> Any:
    """Run an operator on tensors of one device.

    Raises:
        InvalidInputError: what the operator refuses, or tensors on several devices.
        MissingLibraryError: a device without its library.
    """
    devices = {a.device for a in arguments if isinstance(a, Tensor)}
    if len(devices) > 1:
        raise InvalidInputError(
            "expected all tensors on one device, got " + ", ".join(sorted(map(str, devices)))
        )
    check_device(devices)
    operator: Callable[..., Any] = getattr(torch.ops.s4d, function)
    try:
        return operator(*arguments)
    except (RuntimeError, ValueError) as error:
        raise InvalidInputError(str(error).split("\n")[0]) from None


def check_device(devices: Iterable[torch.device]) -> None:
    """Raises MissingLibraryError for a device that the operators do not run on."""
    for device in devices:
        if device.type == "cuda" and _door._cuda_problem is not None:
            raise MissingLibraryError(f"the tensors are on {device}, but {_door._cuda_problem}")
        if device.type not in ("cpu", "cuda"):
            raise MissingLibraryError(f"sparse operators run on CPU and CUDA tensors, got {device}")


def has_kernel(tensor: Tensor) -> bool:
    """Whether the operators take this type on this device. On CUDA: float32 and float16."""
    return tensor.device.type == "cpu" or tensor.dtype in (torch.float32, torch.float16)
