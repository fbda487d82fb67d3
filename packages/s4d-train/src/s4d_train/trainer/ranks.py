"""Devices and ranks: one process per accelerator, whatever its make.

The device is what `torch.accelerator` names (CUDA, NPU, ...), else the CPU; the collective backend
is torch's default for that device. Under torchrun the process group is made from its environment.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..errors import ConfigError
from .meeting import common_word


@dataclass(frozen=True)
class Ranks:
    """Place of this process in the job."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.world > 1:
            dist.barrier()


def pick_device(name: str = "") -> torch.device:
    """The device called `name`, or this machine's accelerator, or the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if not name:
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    there = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    if device is None or device.type not in there:
        raise ConfigError(f"expected a device of {' or '.join(sorted(there))}, got '{name}'.")
    if device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count():
        count = torch.accelerator.device_count()
        raise ConfigError(f"there is no {name}: this machine has {count} such devices.")
    return device


@contextmanager
def started(device: str = "") -> Iterator[Ranks]:
    """Joins the job that torchrun started, or is a job of one; leaves it at a good end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = pick_device(device)
    if chosen.type != "cpu":
        index = int(os.environ.get("LOCAL_RANK", str(chosen.index or 0)))
        chosen = torch.device(chosen.type, index)
        torch.accelerator.set_device_index(index)
    joined = "RANK" in os.environ and world > 1 and not dist.is_initialized()
    if joined:
        backend = dist.get_default_backend_for_device(chosen)
        store, rank, world = next(dist.rendezvous("env://"))
        # A restarted job meets at the same store: its addresses must not be those of the last try.
        word = common_word(store, rank, world)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"s4d/{word}", store),
            rank=rank,
            world_size=world,
            device_id=chosen if chosen.type != "cpu" else None,
        )
    # Where an error comes out of here the process ends, and torchrun ends the others: waiting for
    # them, who may wait for this rank, would hold the job up.
    yield Ranks(rank, world, chosen)
    if joined:
        _leave(chosen)


def _leave(device: torch.device) -> None:
    """Ends the process group when nothing uses it any more.

    DistributedDataParallel lies in reference cycles and holds the group; work in flight holds its
    communicators. Either could let the process wait at its end for ever.
    """
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.synchronize(device.index)
    dist.destroy_process_group()


def peak_memory_gb(device: torch.device) -> float:
    """Largest device memory of tensors so far, in GB (1e9 bytes); 0 on the CPU."""
    if device.type == "cpu":
        return 0.0
    return torch.accelerator.max_memory_allocated(device.index) / 1e9
