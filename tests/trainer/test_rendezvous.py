"""Ranks that are started again on the store of those before them find each other, and no one else."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from trainer.rendezvous import outlives_ranks, own_part

TIMEOUT = timedelta(seconds=20)
WORLD_SIZE = 3


def meet(store: dist.Store, order: list[int]) -> list[dist.Store]:
    """The parts that ranks get which come in `order`."""
    parts: dict[int, dist.Store] = {}

    def come(rank: int) -> None:
        parts[rank] = own_part(store, rank=rank, world_size=WORLD_SIZE, timeout=TIMEOUT)

    threads = []
    for rank in order:
        threads.append(threading.Thread(target=come, args=(rank,)))
        threads[-1].start()
        threads[-1].join(timeout=0.1)  # the next one comes later
    for thread in threads:
        thread.join()
    return [parts[rank] for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["rank 0 first", "rank 0 last"])
def test_an_attempt_reads_nothing_of_those_before_it(order: list[int]) -> None:
    store = dist.HashStore()
    for _ in range(3):
        parts = meet(store, order)
        assert not any(part.check(["address"]) for part in parts)
        parts[1].set("address", "of rank 1")
        assert {part.get("address") for part in parts} == {b"of rank 1"}


def test_a_rank_0_that_never_comes_is_not_waited_for_longer_than_the_timeout() -> None:
    store = dist.HashStore()
    store.set("dure/offer", "dure/of-the-attempt-before")
    with pytest.raises(dist.DistStoreError, match="rank 1: rank 0 of this attempt did not come within 0:00:00.3"):
        own_part(store, rank=1, world_size=2, timeout=timedelta(seconds=0.3))


def test_only_an_agents_store_outlives_its_ranks() -> None:
    assert outlives_ranks({"TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert not outlives_ranks({"TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert not outlives_ranks({})
