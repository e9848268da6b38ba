"""Data-parallel training over processes that `torchrun` started; alone, everything here does nothing."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's number among `count`, and the device it works on."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and talks."""
        return self.rank == 0

    def rows(self, total: int) -> tuple[int, int]:
        """The rows of a batch of `total` that are this one's, as [begin, end)."""
        share = total // self.count
        return self.rank * share, (self.rank + 1) * share

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each by its mean over the processes."""
        given = list(tensors)
        if self.count == 1 or not given:
            return
        flat = torch.cat([t.detach().flatten().to(torch.float32) for t in given])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, part in zip(given, torch.split(flat, [t.numel() for t in given]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_first(self, value: bytes | None) -> bytes | None:
        """The first process's value, in all of them."""
        given = [value]
        if self.count > 1:
            dist.broadcast_object_list(given, src=0)
        return given[0]


def join(device: str | torch.device | None = None) -> Processes:
    """Joins the group that torchrun's environment describes (RANK, WORLD_SIZE, LOCAL_RANK), if there is one.

    The group stays until the process ends: a second one through the same store may wait for the first's addresses.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Processes(rank, count, chosen)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
