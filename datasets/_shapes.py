"""The file that `dlc_reg.protocols.Shapes.load` reads, written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dlc_reg.io import replacing
from dlc_reg.protocols import Shapes


def save(output: Path, *, points: Any, normals: Any, category: Any, name: Any, split: Any, **extra: Any) -> Shapes:
    """Writes the columns (points (S, P, 3), normals or None, text; `extra` columns go along) and reads them back."""
    columns = {"points": points, "category": category, "name": name, "split": split, **extra}
    if normals is not None:
        columns["normals"] = normals
    arrays = {key: np.asarray(column) for key, column in columns.items()}
    for key, array in arrays.items():
        if len(array) != len(arrays["points"]):
            raise SystemExit(f"{key}: {len(array)} rows, {len(arrays['points'])} shapes")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output, overwrite=True) as draft:
        with draft.open("wb") as file:
            np.savez_compressed(file, **arrays)
        shapes = Shapes.load(draft)
    counts = ", ".join(f"{(shapes.split == split).sum()} {split}" for split in np.unique(shapes.split))
    print(f"{output}: {len(shapes)} shapes of {len(shapes.categories())} categories ({counts}), {shapes.checksum}")
    return shapes


def to_unit_sphere(points: np.ndarray) -> np.ndarray:
    """(P, 3) about their mean, the farthest at distance 1."""
    centred = points - points.mean(0)
    return centred / max(float(np.linalg.norm(centred, axis=1).max()), 1e-12)


def normals_to_int8(normals: np.ndarray) -> np.ndarray:
    return np.round(127 * normals).astype(np.int8)
