"""Ranks of one attempt of a job find each other at a store that outlives attempts.

torchrun's count of restarts does not tell attempts apart: over several nodes it counts on each node
the failures that happened there.
"""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

from ..errors import TrainError

PATIENCE = timedelta(minutes=30)
_PAUSE = 0.02  # seconds between two looks of the first rank


def common_word(store: dist.Store, rank: int, world: int, patience: timedelta = PATIENCE) -> str:
    """A word that all ranks of this attempt have in common and no other attempt has.

    Every other rank leaves a new word of its own at the store and waits for an answer to it. The
    first rank answers all words that it finds, those of an earlier attempt too, until every rank
    has confirmed the answer.

    Raises:
        TrainError: not all ranks came within `patience`.
    """
    mine = uuid4().hex
    if rank > 0:
        store.set(f"s4d/rank/{rank}", mine)
        try:
            store.wait([f"s4d/answer/{mine}"], patience)
        except RuntimeError as error:  # a timeout, or the store has gone
            raise TrainError(f"rank {rank} found no first rank: {error}") from None
        word = store.get(f"s4d/answer/{mine}").decode()
        store.set(f"s4d/confirmed/{word}/{rank}", "1")
        return word
    end = time.monotonic() + patience.total_seconds()
    answered: dict[int, bytes] = {}
    missing = set(range(1, world))
    while missing:
        for other in sorted(missing):
            if store.check([f"s4d/confirmed/{mine}/{other}"]):
                missing.discard(other)
            elif store.check([f"s4d/rank/{other}"]):
                found = store.get(f"s4d/rank/{other}")
                if answered.get(other) != found:
                    store.set(f"s4d/answer/{found.decode()}", mine)
                    answered[other] = found
        if missing and time.monotonic() > end:
            raise TrainError(f"ranks {sorted(missing)} of {world} have not come to the job.")
        time.sleep(_PAUSE)
    return mine
