"""Still pictures of clouds, as the page's script draws them: for paper, and for browsers without WebGL."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ramp = Sequence[str]
# Okabe and Ito's orange and blue, dark to light: told apart by every kind of colour vision, and in grey.
SOURCE: Ramp = ("#7a3b00", "#f5a623")
TARGET: Ramp = ("#0a3561", "#4aa5e8")
# Cool to hot for every colour vision, none so dark or so light that it is lost on a dark or a light page.
HEAT: Ramp = ("#4b4fd8", "#a03fc0", "#d8456f", "#ee7a2c", "#e8a800")
GREY = "#8c949d"
FINER = 2  # dots are drawn this many times as large and averaged, for smooth edges


def colours(ramp: Ramp, shares: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(n, 3) at `shares` (n,) of the ramp, 0 its first colour and 1 its last; grey where NaN."""
    ends = np.array([_rgb(colour) for colour in ramp])
    known = np.nan_to_num(shares)
    mixed = np.stack([np.interp(known, np.linspace(0, 1, len(ends)), channel) for channel in ends.T], axis=1)
    mixed[np.isnan(shares)] = _rgb(GREY)
    return np.asarray(np.rint(mixed), np.uint8)


def hexadecimal(ramp: Ramp, share: float) -> str:
    return "#" + colours(ramp, np.array([share], np.float32)).tobytes().hex()


def picture(
    points: NDArray[np.float32],
    painted: NDArray[np.uint8],
    view: NDArray[np.float64],
    up: NDArray[np.float64],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """(height, width, 4), clear where there is no point: `points` (n, 3) in colours (n, 3), filling `size` [pixels]."""
    width, height = (FINER * side for side in size)
    seen = points @ np.stack([np.cross(up, view), up, view]).T
    middle, half = framed(seen[:, :2])
    scale = 0.46 * min(width / half[0], height / half[1])
    dot = FINER * float(np.clip(np.sqrt(size[0] * size[1] / len(points)), 1.8, 0.011 * size[0]))
    reach = np.arange(-int(dot), int(dot) + 1)
    disc = np.stack([offset.ravel() for offset in np.meshgrid(reach, reach)])
    disc = disc[:, (disc**2).sum(axis=0) <= dot**2 / 4]
    order = np.argsort(seen[:, 2], kind="stable")  # far to near: of dots on one pixel the last stays
    across = np.rint(width / 2 + scale * (seen[order, :1] - middle[0])).astype(int) + disc[0]
    down = np.rint(height / 2 - scale * (seen[order, 1:2] - middle[1])).astype(int) + disc[1]
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    fine = np.zeros((height, width, 4), np.uint8)
    dots = np.insert(painted[order], 3, 255, axis=1)
    fine[down[inside], across[inside]] = dots[np.nonzero(inside)[0]]
    blocks = fine.reshape(size[1], FINER, size[0], FINER, 4).astype(np.float32).mean(axis=(1, 3))
    blocks[..., :3] *= 255 / np.maximum(blocks[..., 3:], 1)  # the mean of the dots' colours, not of the clear pixels'
    return np.asarray(np.rint(blocks), np.uint8)


def framed(flat: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Middle and half the extent of `flat` (n, 2), all but a few far points."""
    low, high = np.quantile(flat, [0.001, 0.999], axis=0)
    return (low + high) / 2, np.maximum((high - low) / 2, 1e-9 * max(float(np.ptp(flat)), 1e-30))


def png(image: NDArray[np.uint8]) -> bytes:
    """The file for (height, width, 4) of red, green, blue and opacity."""
    height, width, _ = image.shape
    rows = np.insert(image.reshape(height, -1), 0, 0, axis=1)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
