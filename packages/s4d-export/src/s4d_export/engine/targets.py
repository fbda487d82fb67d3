"""Named targets of ``s4d-export engine``: what a build for them needs, as data."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ..errors import EngineBuildError

__all__ = ["TARGETS", "Target", "find_target"]


@dataclass(frozen=True)
class Target:
    """A kind of machine. An engine is built on the machine that it runs on.

    Attributes:
        machine: processor, as ``platform.machine`` calls it.
        tensorrt: major versions of TensorRT that its software brings.
        workspace_mib: scratch memory while building, MiB; less where the GPU shares memory.
        label: for people.
    """

    machine: str
    tensorrt: tuple[int, ...]
    workspace_mib: int
    label: str


TARGETS = {
    "x86": Target("x86_64", (10, 11), 4096, "x86 with an NVIDIA GPU"),
    "orin-jetpack6": Target("aarch64", (10,), 2048, "Orin, JetPack 6"),
    "orin-jetpack7": Target("aarch64", (11,), 2048, "Orin, JetPack 7.2.2 and later"),
    "thor-jetpack7": Target("aarch64", (11,), 4096, "Thor, JetPack 7.2.2 and later"),
}


def find_target(name: str) -> Target:
    """The named target, if this machine is of its kind.

    Raises:
        EngineBuildError: unknown name, or another processor.
    """
    target = TARGETS.get(name)
    if target is None:
        raise EngineBuildError(f"expected a target of {', '.join(TARGETS)}, got {name!r}")
    here = platform.machine()
    if here != target.machine:
        raise EngineBuildError(
            f"an engine for {name} ({target.label}) is built there: this machine is {here}, not "
            f"{target.machine}; copy the artifact and run the same command on it"
        )
    return target
