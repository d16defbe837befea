"""How ranks that an agent starts again find each other, and not those of the attempt before.

torchrun's agent keeps one store for all of its attempts and, unlike what torch's rendezvous assumes, makes no new one
after a failure: the addresses of killed ranks are still in it, and gloo connects to them in vain ("connectFullMesh
failed: Connection refused"). TORCHELASTIC_RESTART_COUNT would not do as a prefix: it differs between the nodes.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

_POLL_SECONDS = 0.1
_OFFER = "dure/offer"


def outlives_ranks(environ: Mapping[str, str]) -> bool:
    """Whether the store belongs to an agent, which starts ranks again."""
    return environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def own_part(store: dist.Store, *, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The part of `store` that the ranks of this attempt have to themselves; all of them call it.

    Rank 0 offers a name that never was, every rank answers with a token under it, and rank 0 confirms the tokens. A
    rank that finds an earlier attempt's offer is not among those confirmed there, and looks again.

    Raises:
        dist.DistStoreError: not every rank came within `timeout`.
    """
    token = secrets.token_hex(8)
    if rank == 0:
        name = f"dure/{secrets.token_hex(8)}"
        store.set(_OFFER, name)
        others = [f"{name}/{other}" for other in range(1, world_size)]
        store.wait(others, timeout)
        store.set(f"{name}/confirmed", json.dumps([store.get(key).decode() for key in others]))
        return dist.PrefixStore(name, store)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        name = store.get(_OFFER).decode()
        store.set(f"{name}/{rank}", token)
        if store.check([f"{name}/confirmed"]) and json.loads(store.get(f"{name}/confirmed"))[rank - 1] == token:
            return dist.PrefixStore(name, store)
        time.sleep(_POLL_SECONDS)
    raise dist.DistStoreError(f"rank {rank}: rank 0 of this attempt did not come within {timeout}")
