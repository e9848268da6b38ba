"""Pairs of images with a known homography, made of prepared pictures by the papers' protocol.

An input of `size` pixels is cut from a picture. Four corners, each drawn in its own corner region of the input, are
where the corners of a square template of 2/3 of the size come from: the template is the picture (or the other picture
of an aligned pair) seen through the homography that maps its corners to the drawn ones. At size 192 that is the
protocol of DLKFM and PRISE: a template of 128, corners off by up to 32 pixels each way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from dlc_reg._warping import corners, homography_from_corners, warp
from dlc_reg.errors import InputError
from dlc_reg.io import read_columns

Array = NDArray[Any]
PROTOCOL = 192  # pixels of the papers' inputs, at which errors are told


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures (S, H, W, 3) uint8 and, where each has an aligned partner of another kind, `partner` of that shape.

    name, split and licence (S,) text, split one of "train", "val", "test": a picture is in one split alone.
    """

    picture: Array
    partner: Array | None
    name: Array
    split: Array
    licence: Array

    def __post_init__(self) -> None:
        for key in ("picture", "partner"):
            given = getattr(self, key)
            if given is None and key == "partner":
                continue
            if given.ndim != 4 or given.shape[-1] != 3 or given.dtype != np.uint8 or 0 in given.shape:
                raise InputError(key, f"{given.dtype} {given.shape}", "uint8 (S, H, W, 3), nothing zero")
        if self.partner is not None and self.partner.shape != self.picture.shape:
            raise InputError("partner", f"shape {self.partner.shape}", f"that of picture, {self.picture.shape}")
        for key in ("name", "split", "licence"):
            column = getattr(self, key)
            if column.shape != (len(self.picture),) or column.dtype.kind != "U":
                raise InputError(key, f"{column.dtype} {column.shape}", f"text, one a picture ({len(self.picture)},)")
        if unknown := set(np.unique(self.split)) - {"train", "val", "test"}:
            raise InputError("split", ", ".join(sorted(unknown)), "train, val or test")
        if len(np.unique(self.name)) != len(self.name):
            raise InputError(
                "name", "one name for several pictures", "a name each, so that no picture is in two splits"
            )

    @classmethod
    def load(cls, path: str | Path) -> Pictures:
        """Reads the npz that `datasets/images.py` prepares. Nothing in the file is executed."""
        names = [f.name for f in fields(cls) if f.name != "partner"]
        data = read_columns(path, names, "datasets/images.py", optional=("partner",))
        return cls(**{"partner": None, **data})

    def __len__(self) -> int:
        return len(self.picture)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over the arrays."""
        digest = hashlib.sha256()
        for array in (self.picture, self.partner):
            array = np.zeros(0, np.uint8) if array is None else array
            digest.update(f"{array.shape};".encode() + np.ascontiguousarray(array).tobytes())
        for column in (self.name, self.split, self.licence):
            digest.update("\n".join([*column.tolist(), ""]).encode("utf-8"))
        return digest.hexdigest()

    @property
    def licences(self) -> list[str]:
        return sorted(set(self.licence.tolist()))

    def select(self, split: str) -> Pictures:
        """The pictures of one split."""
        rows = self.split == split
        if not rows.any():
            raise InputError("split", repr(split), f"one of {', '.join(np.unique(self.split))}")
        partner = None if self.partner is None else self.partner[rows]
        return Pictures(self.picture[rows], partner, self.name[rows], self.split[rows], self.licence[rows])


@dataclass(frozen=True, eq=False)
class ImagePair:
    """source (3, h, w) and target (3, H, W) in [0, 1], float32; truth (3, 3) float64, source pixels into target's."""

    source: Tensor
    target: Tensor
    truth: Tensor
    index: int


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Pairs of one size: source (B, 3, h, w), target (B, 3, H, W), truth (B, 3, 3)."""

    source: Tensor
    target: Tensor
    truth: Tensor

    def to(self, device: Any) -> ImageBatch:
        return ImageBatch(self.source.to(device), self.target.to(device), self.truth.to(device))


def collate_images(pairs: list[ImagePair]) -> ImageBatch:
    """One batch of pairs of one size."""
    return ImageBatch(*(torch.stack([getattr(p, key) for p in pairs]) for key in ("source", "target", "truth")))


class ImagePairs(Dataset[ImagePair]):
    """Item i is the pair that (seed, i) determines: template as source, input as target, and the true homography.

    `size`: of the input in pixels, a multiple of 12. `zoom`: pixels of the picture that a pixel of the pair stands for.
    `octaves`: how often the zoom may double beyond that, drawn evenly for each pair. `reach`: share of the protocol's
    perturbation. `photometric`: strength of the change of tones, 0 for none.
    """

    def __init__(
        self,
        pictures: Pictures,
        seed: int = 0,
        length: int | None = None,
        *,
        size: int = 192,
        zoom: float = 1.0,
        octaves: float = 0.0,
        reach: float = 1.0,
        photometric: float = 1.0,
    ) -> None:
        if seed < 0 or (length is not None and length < 1) or size < 48 or size % 12:
            raise InputError(
                "seed, length, size", f"{seed}, {length}, {size}", "from 0, from 1, a multiple of 12 from 48"
            )
        height, width = pictures.picture.shape[1:3]
        if not (zoom > 0 and octaves >= 0 and zoom * 2**octaves * size <= min(height, width)):
            given = f"{zoom}, doubled {octaves} times, for {size} pixels"
            raise InputError("zoom, octaves", given, f"inputs that fit into pictures of {width} x {height}")
        if not (0 <= reach <= 1 and 0 <= photometric <= 2):
            raise InputError("reach, photometric", f"{reach}, {photometric}", "from 0 to 1, from 0 to 2")
        self.pictures, self.seed, self.size, self.zoom = pictures, seed, size, zoom
        self.octaves, self.reach, self.photometric = octaves, reach, photometric
        self._length = len(pictures) if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: int) -> ImagePair:
        if not 0 <= item < self._length:
            raise IndexError(f"pair {item} of {self._length}")
        rng = np.random.default_rng([self.seed, item])
        index = item % len(self.pictures)
        if self._length > len(self.pictures):
            index = int(rng.integers(len(self.pictures)))
        zoom = self.zoom * 2 ** (self.octaves * rng.uniform()) if self.octaves else self.zoom
        place = [rng.integers(int(n - zoom * self.size) + 1) for n in self.pictures.picture.shape[1:3]]
        truth = draw_homography(self.size, rng, self.reach)
        first = _image(self.pictures.picture[index])
        other = first if self.pictures.partner is None else _image(self.pictures.partner[index])
        cut = _crop_of(place, zoom)
        template = 2 * self.size // 3
        target = _seen(first, torch.linalg.inv(cut), self.size, zoom)
        source = _seen(other, torch.linalg.inv(cut @ truth), template, zoom)
        return ImagePair(_retoned(source, rng, self.photometric), _retoned(target, rng, self.photometric), truth, index)


def draw_homography(size: int, rng: np.random.Generator, reach: float = 1.0) -> Tensor:
    """(3, 3): template of 2/3 of the size -> input, its corners drawn about those of the square in the middle."""
    template = corners((2 * size // 3, 2 * size // 3))
    off = torch.from_numpy(rng.uniform(-1, 1, (4, 2))) * reach * size / 6
    return homography_from_corners(template, template + size / 6 + off)


def _image(picture: Array) -> Tensor:
    return torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255


def _crop_of(place: list[Any], zoom: float) -> Tensor:
    """(3, 3): pixels of the input -> pixels of the picture. Pixel areas, not centres, are zoomed."""
    y, x = (float(p) + (zoom - 1) / 2 for p in place)
    return torch.tensor([[zoom, 0, x], [0, zoom, y], [0, 0, 1]], dtype=torch.float64)


def _seen(picture: Tensor, homography: Tensor, size: int, zoom: float) -> Tensor:
    """(3, size, size): sampled on a grid finer by `zoom`, rounded, and averaged, so that zooming out does not alias."""
    finer = max(round(zoom), 1)
    shift = (finer - 1) / 2
    fine = torch.tensor([[finer, 0, shift], [0, finer, shift], [0, 0, 1]], dtype=torch.float64) @ homography
    return functional.avg_pool2d(warp(picture, fine[None], (finer * size, finer * size))[0], finer)[0]


def _retoned(image: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Gamma, contrast, brightness, balance of colours, uneven light, blur and noise, each drawn up to `strength`."""
    if not strength:
        return image
    (gamma, contrast), brightness = 2.0 ** (strength * rng.uniform(-1, 1, 2)), 0.2 * strength * rng.uniform(-1, 1)
    balance = torch.from_numpy(2.0 ** (strength * rng.uniform(-0.5, 0.5, (3, 1, 1)))).float()
    field = torch.from_numpy(rng.uniform(-1, 1, (1, 1, 3, 3))).float()
    light = functional.interpolate(field, image.shape[-2:], mode="bicubic", align_corners=True)[0]
    toned = image.clamp(0, 1) ** float(gamma) * balance * 2.0 ** (0.8 * strength * light)
    toned = (toned - 0.5) * float(contrast) + (0.5 + brightness)
    width = strength * rng.uniform(0, 1)
    if width > 0.3:
        toned = _blurred(toned, width)
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
    return (toned + 0.02 * strength * rng.uniform() * noise).clamp(0, 1)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    x = torch.arange(-3, 4, dtype=image.dtype)
    kernel = (-(x**2) / (2 * sigma**2)).exp()
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(len(image), 1, 7, 7)
    padded = functional.pad(image[None], (3, 3, 3, 3), mode="replicate")
    return functional.conv2d(padded, kernel, groups=len(image))[0]
