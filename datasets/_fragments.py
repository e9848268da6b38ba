"""Writes the prepared format of scenes (`tools/fragments.py` states it and reads it), and reads the truth of pairs.

Clouds go to the disk one by one, so that a set need not fit into memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlc_reg.geometry import nearly_rigid
from dlc_reg.io import replacing


class Cloud(NamedTuple):
    """Points (N, 3), metres, in the sensor's frame, and which of the scene's they are."""

    scene: str
    number: int
    points: np.ndarray


def save_fragments(
    output: Path, clouds: Iterable[Cloud], *, scale: float, compress: bool, arrays: dict[str, np.ndarray]
) -> None:
    """The clouds, rounded to multiples of `scale`, with the pairs' `arrays` beside them. Replaces a file.

    Uncompressed, a reader can take one cloud out of the file without the others.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    names, offsets = [], [0]
    with replacing(output, overwrite=True) as draft, tempfile.TemporaryFile(dir=output.parent) as rounded:
        for cloud in clouds:
            steps = np.round(np.asarray(cloud.points, np.float64) / scale)
            if steps.ndim != 2 or steps.shape[1] != 3 or not (np.abs(steps) < 2**31).all():  # NaN is not below either
                where = f"{cloud.scene} {cloud.number}"
                raise SystemExit(f"{where}: not finite points (N, 3) within {2**31 * scale:.0f} m of the origin")
            rounded.write(steps.astype(np.int32).tobytes())
            names.append((cloud.scene, cloud.number))
            offsets.append(offsets[-1] + len(steps))
        if not offsets[-1]:
            raise SystemExit("no points at all")
        rounded.flush()
        points = np.memmap(rounded, np.int32, "r", shape=(offsets[-1], 3))
        columns = {
            "points_q": points,
            "scale": np.float64(scale),
            "offsets": np.array(offsets),
            "scene": np.array([scene for scene, _ in names]),
            "fragment": np.array([number for _, number in names], np.int32),
        }
        (np.savez_compressed if compress else np.savez)(draft, **columns, **arrays)


def read_blocks(text: str, size: int, name: str) -> dict[tuple[int, int], np.ndarray]:
    """{(i, j): matrix} of a gt.log (size 4) or gt.info (size 6): a line `i j n`, then the rows of the matrix."""
    try:
        values = np.array(text.split(), float).reshape(-1, 3 + size * size)
        return {(int(v[0]), int(v[1])): v[3:].reshape(size, size) for v in values}
    except (ValueError, OverflowError):
        raise SystemExit(f"{name}: not lines of `i j n` with a {size}x{size} matrix each") from None


def check_rigid(pose: np.ndarray, where: str) -> None:
    """Stops for a matrix (4, 4) that is not a rotation and a translation, to the digits that such files have."""
    if not nearly_rigid(pose):
        raise SystemExit(f"{where} is no rigid motion")
