"""Labelled sequences: what `datasets/sequences.py` prepares, checked, and the items that a network is given of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlc_reg.errors import InputError
from dlc_reg.io import read_columns

Array = NDArray[Any]
Order = Literal["stored", "rows", "pixels", "permuted"]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences of one length, or grey images to be read as such, with an answer each.

    values: (S, T, D) floats, or (S, height, width) uint8; target: (S,) classes as integers, or float32 values; split:
    (S,) text, one of "train", "val", "test"; classes: (C,) text, their names, empty of values; title: what people call
    the data.
    """

    values: Array
    target: Array
    split: Array
    classes: Array
    title: str = "unnamed"

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or 0 in self.values.shape or self.values.dtype not in (np.uint8, np.float32):
            given = f"{self.values.dtype} of shape {self.values.shape}"
            raise InputError("values", given, "(S, T, D) floats or (S, height, width) uint8, nothing of it zero")
        if not np.isfinite(self.values).all():
            raise InputError("values", "NaN or infinity", "finite values")
        if self.target.shape != (len(self.values),) or self.target.dtype not in (np.int64, np.float32):
            given = f"{self.target.dtype} of shape {self.target.shape}"
            raise InputError("target", given, f"a class or a value a sequence, ({len(self.values)},)")
        if self.is_classes != bool(len(self.classes)) or self.classes.ndim != 1:
            raise InputError(
                "classes", f"shape {self.classes.shape}", "a name a class, and none where targets are values"
            )
        known = np.isin(self.target, np.arange(len(self.classes))) if self.is_classes else np.isfinite(self.target)
        if not known.all():
            raise InputError("target", "NaN, infinity or an unknown class", "finite values, or classes that have names")
        unknown = set(np.unique(self.split)) - {"train", "val", "test"}
        if self.split.shape != self.target.shape or unknown:
            raise InputError("split", f"{self.split.shape} of {', '.join(sorted(unknown))}", "train, val or test, each")

    @classmethod
    def load(cls, path: str | Path) -> Sequences:
        """Reads an npz of plain arrays. Nothing in the file is executed."""
        columns = read_columns(path, ("values", "target", "split", "classes", "title"), "datasets/sequences.py")
        values, target = columns["values"], columns["target"]
        values = values.astype(np.float32) if values.dtype.kind == "f" else values
        target = target.astype(np.int64 if target.dtype.kind in "iu" else np.float32)
        return cls(values, target, columns["split"], columns["classes"], str(columns["title"]))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_classes(self) -> bool:
        return bool(self.target.dtype == np.int64)

    @property
    def outputs(self) -> int:
        """Length of a prediction: the number of classes, or one value."""
        return len(self.classes) or 1

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over the arrays: names the data in a results file, whatever file they came from."""
        digest = hashlib.sha256()
        for array in (self.values, self.target, np.array("\n".join(self.split.tolist()).encode())):
            digest.update(f"{array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def take(self, rows: Array) -> Sequences:
        return Sequences(self.values[rows], self.target[rows], self.split[rows], self.classes, self.title)

    def halves(self) -> tuple[Sequences | None, Sequences]:
        """Those to train on, if any, and to validate on: the split "val", or else every tenth of "train"."""
        training, validating = (np.flatnonzero(self.split == name) for name in ("train", "val"))
        if not len(validating):
            validating, training = training[::10], np.delete(training, np.s_[::10])
        if not len(validating):
            raise InputError("split", "no sequence of 'val' or 'train'", "some to validate on")
        return self.take(training) if len(training) else None, self.take(validating)


@dataclass(frozen=True)
class SequenceBatch:
    """values (B, T, D); truth (B, C): one-hot labels if `classes`, else values."""

    values: Tensor
    truth: Tensor
    classes: bool

    def to(self, device: Any) -> SequenceBatch:
        return SequenceBatch(self.values.to(device), self.truth.to(device), self.classes)


class Item(NamedTuple):
    values: Tensor  # (T, D)
    truth: Tensor  # (C,)
    classes: bool


def collate(items: Sequence[Item]) -> SequenceBatch:
    values, truths, classes = zip(*items, strict=True)
    return SequenceBatch(torch.stack(values), torch.stack(truths), classes[0])


class Adding(Dataset[Item]):
    """The adding problem (Hochreiter and Schmidhuber, 1997), without end: item i is a function of the seed and i."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __getitem__(self, i: int) -> Item:
        values, target = adding(np.random.default_rng([self.seed, i]), self.length)
        return Item(torch.from_numpy(values), torch.tensor([target]), False)


def adding(rng: np.random.Generator, length: int) -> tuple[Array, float]:
    """(length, 2) float32: numbers uniform in [0, 1], and marks at one of each half; the sum of the two marked."""
    values = np.zeros((length, 2), np.float32)
    values[:, 0] = rng.random(length, np.float32)
    marked = [int(rng.integers(length // 2)), int(rng.integers(length // 2, length))]
    values[marked, 1] = 1
    return values, float(values[marked, 0].sum())


class Items(Dataset[Item]):
    """The sequences, each epoch in another order, as a function of the seed and the item's number alone."""

    def __init__(
        self,
        data: Sequences,
        seed: int,
        *,
        order: Order = "stored",
        shrink: int = 1,
        length: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.data, self.seed, self.length, self.shuffle = data, seed, length, shuffle
        self.read = reader(data, order, shrink)
        self._epoch: tuple[int, Array] = (-1, np.zeros(0, np.int64))
        steps = len(self.read(0))
        if length and length < steps:
            raise InputError("data.length", str(length), f"at least the sequences' own {steps} steps, or 0")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Item:
        row = self._row(i)
        values = self.read(row)
        if self.length > len(values):  # noise behind what is to be remembered
            rng = np.random.default_rng([self.seed, i])
            noise = rng.standard_normal((self.length - len(values), values.shape[1]), np.float32)
            values = np.concatenate([values, noise])
        target = self.data.target[row]
        truth = torch.eye(self.data.outputs)[int(target)] if self.data.is_classes else torch.tensor([float(target)])
        return Item(torch.from_numpy(np.ascontiguousarray(values)), truth, self.data.is_classes)

    def _row(self, i: int) -> int:
        if not self.shuffle:
            return i
        epoch, place = divmod(i, len(self.data))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.data)))
        return int(self._epoch[1][place])


def reader(data: Sequences, order: Order, shrink: int = 1) -> Callable[[int], Array]:
    """row -> (T, D) float32. Images in [0, 1], by rows, by pixels, or by pixels in one order drawn once for all.

    `shrink`: squares of so many pixels a side are averaged first.
    """
    images = data.values.dtype == np.uint8
    if images == (order == "stored"):
        raise InputError("data.order", order, "rows, pixels or permuted of images, stored of other sequences")
    height, width = data.values.shape[1:]
    if shrink < 1 or (shrink > 1 and (not images or height % shrink or width % shrink)):
        given = f"{shrink} for {height} x {width}"
        raise InputError("data.shrink", given, "1, or a number that divides both sides of images")
    if not images:
        return lambda row: data.values[row]
    height, width = height // shrink, width // shrink
    size = height * width
    places = np.random.default_rng(0).permutation(size) if order == "permuted" else np.arange(size)

    def read(row: int) -> Array:
        squares = data.values[row].reshape(height, shrink, width, shrink).astype(np.float32) / 255
        image: Array = squares.mean((1, 3))
        return image if order == "rows" else image.reshape(-1, 1)[places]

    return read
