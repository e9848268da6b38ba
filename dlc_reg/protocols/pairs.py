"""Pairs as a torch data set, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlc_reg.errors import InputError
from dlc_reg.protocols.making import draw_motion, make_pair
from dlc_reg.protocols.shapes import Shapes
from dlc_reg.protocols.table import Protocol
from dlc_reg.protocols.table import protocol as find_protocol

Array = NDArray[Any]
ShapeTransform = Callable[[Array, Array | None, np.random.Generator], Array]


@dataclass(frozen=True, eq=False)
class Pair:
    """source (N, 3), target (M, 3), truth (4, 4) T_target_source, all float32; index of the shape."""

    source: Tensor
    target: Tensor
    truth: Tensor
    index: int


class PairDataset(Dataset[Pair]):
    """Item i is the pair that (seed, i) determines: the same each time, in any process. Change the seed an epoch.

    Without `length` item i is made of shape i; with it the shapes come in an order drawn from the seed, round after
    round. `transform(points (P, 3), normals or None, rng) -> points (P, 3)` acts on the shape before its pair is made.
    """

    def __init__(
        self,
        shapes: Shapes,
        protocol: str | Protocol,
        seed: int = 0,
        length: int | None = None,
        transform: ShapeTransform | None = None,
    ) -> None:
        if seed < 0 or (length is not None and length < 1):
            raise InputError("seed, length", f"{seed}, {length}", "a seed from 0, a length from 1 or None")
        self.shapes, self.seed, self.transform = shapes, seed, transform
        self.protocol = protocol if isinstance(protocol, Protocol) else find_protocol(protocol)
        order = np.arange(len(shapes)) if length is None else np.random.default_rng(seed).permutation(len(shapes))
        self._order, self._length = order, len(shapes) if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: int) -> Pair:
        points, index, rng = self._shape(item)
        source, target, truth = (torch.from_numpy(a).float() for a in make_pair(points, self.protocol, rng))
        return Pair(source, target, truth, index)

    def clean_target(self, item: int) -> Tensor:
        """The whole shape (P, 3) of pair `item` in the target's frame, uncropped and noiseless, for `modified_chamfer`.

        It is the answer: for measuring only.
        """
        points, _, rng = self._shape(item)
        motion = draw_motion(self.protocol, rng)  # the first that make_pair draws
        moved = points if self.protocol.moves == "source" else points @ motion[:3, :3].T + motion[:3, 3]
        return torch.from_numpy(moved).float()

    def _shape(self, item: int) -> tuple[Array, int, np.random.Generator]:
        if not 0 <= item < self._length:
            raise IndexError(f"pair {item} of {self._length}")
        rng = np.random.default_rng([self.seed, item])
        index = int(self._order[item % len(self._order)])
        points = self.shapes.points[index]
        if self.transform is not None:
            points = self.transform(points, None if self.shapes.normals is None else self.shapes.normals[index], rng)
        return points, index, rng


@dataclass(frozen=True, eq=False)
class PairBatch:
    """source (B, N, 3), target (B, M, 3), masks (B, N), (B, M) bool or None where all are points, truth, index (B,)."""

    source: Tensor
    target: Tensor
    source_mask: Tensor | None
    target_mask: Tensor | None
    truth: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.truth)

    def to(self, device: Any, *, non_blocking: bool = False) -> PairBatch:
        return self._each(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """Called by a DataLoader with pin_memory=True."""
        return self._each(lambda t: t.pin_memory())

    def _each(self, f: Callable[[Tensor], Tensor]) -> PairBatch:
        source_mask, target_mask = (None if mask is None else f(mask) for mask in (self.source_mask, self.target_mask))
        return PairBatch(f(self.source), f(self.target), source_mask, target_mask, f(self.truth), f(self.index))


def collate(pairs: Sequence[Pair]) -> PairBatch:
    """One batch; clouds of different sizes are padded with zeros, and masks say where the points are."""
    source, source_mask = stack_ragged([p.source for p in pairs])
    target, target_mask = stack_ragged([p.target for p in pairs])
    truth, index = torch.stack([p.truth for p in pairs]), torch.tensor([p.index for p in pairs])
    return PairBatch(source, target, source_mask, target_mask, truth, index)


def stack_ragged(clouds: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Clouds (N_i, 3) padded with zeros to (B, N, 3), and the mask (B, N); None where all have the same size."""
    sizes = torch.tensor([len(c) for c in clouds])
    if (sizes == sizes[0]).all():
        return torch.stack(clouds), None
    padded = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True)
    return padded, torch.arange(padded.shape[1]) < sizes[:, None]
