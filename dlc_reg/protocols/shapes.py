"""Point-sampled shapes: what the scripts in `datasets/` prepare, checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.io import read_columns

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Shapes:
    """Point-sampled shapes in the unit sphere, all with the same number of points.

    points (S, P, 3) float32; normals (S, P, 3) float32 or None; category, name and split (S,) text, split one of
    "train", "val", "test".
    """

    points: Array
    normals: Array | None
    category: Array
    name: Array
    split: Array

    def __post_init__(self) -> None:
        if self.points.ndim != 3 or self.points.shape[-1] != 3 or 0 in self.points.shape:
            raise InputError("points", f"shape {self.points.shape}", "(S, P, 3), neither S nor P zero")
        if self.normals is not None and self.normals.shape != self.points.shape:
            raise InputError("normals", f"shape {self.normals.shape}", f"that of the points, {self.points.shape}")
        if self.normals is not None and not np.isfinite(self.normals).all():
            raise InputError("normals", "NaN or infinity", "finite normals")
        for key in ("category", "name", "split"):
            column = getattr(self, key)
            if column.shape != (len(self.points),) or column.dtype.kind != "U":
                raise InputError(key, f"{column.dtype} {column.shape}", f"text, one a shape ({len(self.points)},)")
        unknown = set(np.unique(self.split)) - {"train", "val", "test"}
        if unknown:
            raise InputError("split", ", ".join(sorted(unknown)), "train, val or test")
        radius = math.sqrt(float(np.einsum("spi,spi->sp", self.points, self.points).max()))
        if not radius < 1.01:  # a NaN fails too; 1.01 lets float16 files pass
            raise InputError("points", f"radius {radius:.4g} about the origin", "shapes scaled into the unit sphere")

    @classmethod
    def load(cls, path: str | Path) -> Shapes:
        """Reads what the scripts in `datasets/` prepare: an npz with points, category, name, split, maybe normals.

        Points may be of any float type, normals too or int8 (times 127). Nothing in the file is executed.
        """
        columns = ("points", "category", "name", "split")
        data = read_columns(path, columns, "a script in datasets/", optional=("normals",))
        if data["points"].dtype.kind != "f":
            raise InputError("points", str(data["points"].dtype), "a float type")
        normals = data.get("normals")
        if normals is not None and normals.dtype.kind != "f" and normals.dtype != np.int8:
            raise InputError("normals", str(normals.dtype), "a float type, or int8")
        if normals is not None and normals.shape != data["points"].shape:  # before their lengths are taken
            raise InputError("normals", f"shape {normals.shape}", f"that of the points, {data['points'].shape}")
        return cls(data["points"].astype(np.float32), _unit(normals), *(data[key] for key in columns[1:]))

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over the arrays: names the data in a results file, whatever file they came from."""
        digest = hashlib.sha256()
        for array in (self.points, self.normals, self.category, self.name, self.split):
            array = np.zeros(0) if array is None else array
            if array.dtype.kind == "U":
                array = np.array("\n".join([*array.tolist(), ""]).encode("utf-8"))  # whatever the width of the column
            digest.update(f"{array.dtype.str} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def categories(self, which: Literal["all", "seen", "unseen"] = "all") -> list[str]:
        """Names in order. "unseen" is the last half of them, the last 20 of ModelNet40's 40, "seen" the others."""
        names = [str(name) for name in np.unique(self.category)]
        half = (len(names) + 1) // 2
        return {"all": names, "seen": names[:half], "unseen": names[half:]}[which]

    def select(self, *, split: str | None = None, categories: str | Iterable[str] | None = None) -> Shapes:
        """The shapes of one split and of some categories: names, or "seen" or "unseen" of *these* shapes' categories.

        So ask for both in one call: which categories are unseen depends on the whole set.
        """
        rows = np.ones(len(self), bool)
        if split is not None:
            rows &= self.split == split
        if categories is not None:
            if isinstance(categories, str) and categories not in ("all", "seen", "unseen"):
                raise InputError("categories", repr(categories), "a list of names, or 'all', 'seen' or 'unseen'")
            names = self.categories(categories) if isinstance(categories, str) else list(categories)  # type: ignore[arg-type]
            unknown = set(names) - set(self.categories())
            if unknown:
                raise InputError("categories", ", ".join(sorted(unknown)), f"some of {', '.join(self.categories())}")
            rows &= np.isin(self.category, names)
        if not rows.any():
            raise InputError("select", f"split={split!r}, categories={categories!r}", "at least one shape of the set")
        return self.take(np.flatnonzero(rows))

    def take(self, rows: Array | Sequence[int] | slice) -> Shapes:
        """The shapes at these rows."""
        normals = None if self.normals is None else self.normals[rows]
        return Shapes(self.points[rows], normals, self.category[rows], self.name[rows], self.split[rows])


def _unit(normals: Array | None) -> Array | None:
    if normals is None:
        return None
    n = normals.astype(np.float32)
    if normals.dtype == np.float32:
        return n
    unit: Array = n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-12)
    return unit
