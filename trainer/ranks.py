"""The processes of a run: who this one is, and the few collectives that the loop needs.

Every launcher (dure train, accelerate launch, torchrun, srun) says the same by RANK, WORLD_SIZE and LOCAL_RANK;
what they say beyond that is checked in `trainer/launch_environment.py`, not here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from trainer.errors import RunError
from trainer.rendezvous import outlives_ranks, own_part

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
PATIENCE = timedelta(days=7)  # for what rank 0 does alone: a row table of 100,000 shards outlasts any other collective


class Ranks:
    """This process among those of the run; on one process every collective is the identity."""

    def __init__(self, *, rank: int, world_size: int, local_rank: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.local_rank = local_rank
        self.device = device
        self._patient_group: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Return once every rank has arrived."""
        if self.world_size > 1:
            # A sum on the host: NCCL's own barrier needs a device and hides which rank is missing.
            dist.all_reduce(torch.zeros(1))

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum of `values` over all ranks, on the device that `values` is on."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, claim: bool) -> bool:
        """Whether the claim holds on some rank; on the host, so that no device is waited for."""
        return bool(self.all_sum(torch.tensor(int(claim))).item())

    def gather_objects(self, item: Any) -> list[Any]:
        """Every rank's `item`, in rank order, on every rank."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What `action` returns on rank 0, on every rank; if it raises there, every rank raises the same RunError."""
        outcome: tuple[str, Any] = ("", None)
        patient = self._patient()
        if self.is_main:
            try:
                outcome = ("done", action())
            except Exception as error:  # whatever it is, the other ranks wait to hear of it
                if self.world_size == 1:
                    raise
                outcome = ("failed", _told(error))
        kind, value = self.broadcast_object(outcome, group=patient)
        if kind == "failed":
            raise RunError(value, told_by_main=not self.is_main)
        return value

    def _patient(self) -> Any:
        """A group whose collectives wait for a week; every rank makes it at its first `on_main`.

        A peer that is gone ends them at once, as in any gloo group.
        """
        if self.world_size > 1 and self._patient_group is None:
            self._patient_group = dist.new_group(backend="gloo", timeout=PATIENCE)
        return self._patient_group

    def together(self, action: Callable[[], T]) -> T:
        """What `action`, free of collectives, returns on this rank; where it fails on some, every rank raises.

        One rank tells each different message: the first that has it.
        """
        result: Any = None
        failure: str | None = None
        try:
            result = action()
        except Exception as error:  # whatever it is, the other ranks wait to hear of it
            if self.world_size == 1:
                raise
            failure = _told(error)
        failures = self.gather_objects(failure)
        told = [message for message in failures[: self.rank] if message]
        if failure is not None:
            raise RunError(failure, told_by_main=failure in told)
        if any(failures):
            raise RunError("another rank could not go on", told_by_main=True)
        return cast("T", result)

    def broadcast_object(self, item: Any, *, group: Any = None) -> Any:
        """Rank 0's `item` on every rank; through `group`, or the one of all."""
        if self.world_size == 1:
            return item
        items = [item]
        dist.broadcast_object_list(items, src=0, group=group, device=torch.device("cpu"))
        return items[0]


def _told(error: Exception) -> str:
    """An error as one message; of one that nobody wrote for a person, its kind too."""
    return str(error) if isinstance(error, (RuntimeError, ValueError, OSError)) else f"{type(error).__name__}: {error}"


def start_ranks(*, use_gpu: bool, environ: Mapping[str, str] = os.environ, timeout: timedelta | None = None) -> Ranks:
    """Join the process group that the launcher describes (one process without a launcher) and bind the device.

    A collective that takes longer than `timeout` ends the process; None: COLLECTIVE_TIMEOUT.
    """
    rank, world_size = int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1))
    local_rank = int(environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        _describe_lone_process()
        # Two backends on a GPU: tensors travel by NCCL, Python objects and flags by gloo on the host.
        backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
        timeout = timeout or COLLECTIVE_TIMEOUT
        _wait_in_every_group(timeout)
        if outlives_ranks(environ):
            shared = next(rendezvous("env://", rank, world_size, timeout=timeout))[0]
            store = own_part(shared, rank=rank, world_size=world_size, timeout=timeout)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    return Ranks(rank=rank, world_size=world_size, local_rank=local_rank, device=device)


def _wait_in_every_group(timeout: timedelta) -> None:
    """Groups that others make (DeepSpeed's, of all ranks again) wait as long: torch gives them a default by backend."""
    module = dist.distributed_c10d
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        if getattr(module, name, None) is not None:
            setattr(module, name, timeout)


def stop_ranks() -> None:
    """Leave the process group, so that no warning and no hang follows at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _describe_lone_process() -> None:
    """Give one process the variables of a group of one: DeepSpeed wants a group even then."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items():
        os.environ.setdefault(name, str(value))
