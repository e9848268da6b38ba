"""Images from whatever people have: paths, Pillow's images, NumPy arrays and tensors of any number type."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlc_reg.errors import InputError
from dlc_reg.networks.images import SMALLEST

LARGEST = 1 << 15  # pixels a side
KINDS = "a path, or a (H, W), (H, W, 1 to 4) or torch (1 to 4, H, W) image of integers or floats"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image ready to be aligned, and as it was given."""

    pixels: NDArray[Any]  # (H, W) or (H, W, C) as given, without alpha
    values: Tensor  # (1, 1 or 3, H, W) float32 within [0, 1]
    mask: Tensor  # (1, 1, H, W) bool: where there is an image

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[-2], self.values.shape[-1]


def read_picture(image: Any, mask: Any, argument: str) -> Picture:
    """The image with its mask; an alpha channel is a mask too, where it is above half.

    Raises:
        InputError: a file that is no image, a shape or a type that is none, NaN or infinity where the mask holds, too
            few or too many pixels, or a mask that holds nowhere.
    """
    array = _array(image, argument)
    if array.shape[0] < SMALLEST or array.shape[1] < SMALLEST or max(array.shape[:2]) > LARGEST:
        given = f"{array.shape[1]} x {array.shape[0]} pixels"
        raise InputError(argument, given, f"{SMALLEST} to {LARGEST} pixels a side")
    pixels, alpha = array, None
    if array.ndim == 3 and array.shape[-1] in (2, 4):
        pixels, alpha = array[..., :-1], array[..., -1]
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    holds = _mask(mask, pixels.shape[:2], f"{argument}_mask")
    if alpha is not None:
        holds &= _shares(alpha) > 0.5
    finite = np.isfinite(pixels).all(axis=-1) if pixels.ndim == 3 else np.isfinite(pixels)
    if not finite[holds].all():
        given = f"{int((~finite & holds).sum())} pixels that are NaN or infinite"
        raise InputError(argument, given, f"finite numbers, or {argument}_mask that is False there")
    if holds.sum() < SMALLEST**2:
        raise InputError(f"{argument}_mask", f"{int(holds.sum())} pixels", f"at least {SMALLEST**2}")
    values = _scaled(np.where(holds[..., None] if pixels.ndim == 3 else holds, pixels, 0), holds)
    planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
    return Picture(pixels, torch.from_numpy(np.ascontiguousarray(planes))[None], torch.from_numpy(holds)[None, None])


def _array(image: Any, argument: str) -> NDArray[Any]:
    """(H, W) or (H, W, C) in the given numbers."""
    if isinstance(image, str | Path):
        image = _opened(Path(image), argument)
    tensor = isinstance(image, Tensor)
    if tensor:
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
    elif hasattr(image, "getbands"):  # Pillow's
        image = np.asarray(image.convert("RGBA") if image.mode in ("P", "PA", "LAB", "HSV", "YCbCr", "CMYK") else image)
    if not isinstance(image, np.ndarray) and not hasattr(image, "__array__"):
        raise InputError(argument, type(image).__name__, KINDS)
    array = np.asarray(image)
    if array.dtype.kind not in "buif":
        raise InputError(argument, f"numbers of type {array.dtype}", KINDS)
    if tensor and array.ndim == 3 and array.shape[0] in (1, 2, 3, 4) and array.shape[-1] not in (1, 2, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4)):
        raise InputError(argument, f"shape {array.shape}", KINDS)
    return array


def _opened(path: Path, argument: str) -> Any:
    """Pillow's image, turned as its EXIF orientation says."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise InputError(argument, f"'{path}' without Pillow", 'pip install "dlc_reg[images]", or an array') from None
    try:
        # from a file, Pillow would take memory for what a chunk's header promises
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            if max(file.size) > LARGEST:
                raise ValueError(f"{file.size[0]} x {file.size[1]} pixels")
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise InputError(argument, f"'{path}', which does not exist", "an image file") from None
    except UnidentifiedImageError:
        raise InputError(argument, f"'{path}', which is no image that Pillow can read", "an image file") from None
    except Exception as error:  # Pillow's readers raise whatever they meet: whatever it is, the file is at fault
        raise InputError(argument, f"'{path}' ({error})", "a whole image file") from None


def _mask(mask: Any, shape: tuple[int, ...], argument: str) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(shape, dtype=bool)
    array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if array.shape != shape or array.dtype.kind not in "bui":
        raise InputError(
            argument, f"{array.dtype} of shape {array.shape}", f"bool {shape}, True where there is an image"
        )
    return array.astype(bool)


def _shares(alpha: NDArray[Any]) -> NDArray[Any]:
    if alpha.dtype.kind == "f":
        return alpha
    top = 1 if alpha.dtype.kind == "b" else np.iinfo(alpha.dtype).max
    return alpha / top


def _scaled(pixels: NDArray[Any], holds: NDArray[np.bool_]) -> NDArray[np.float32]:
    """float32, so that the darkest 0.1% become 0 and the brightest 1: units and outliers do not matter."""
    values = pixels.astype(np.float64)
    low, high = np.quantile(values[holds], [0.001, 0.999])
    spread = high - low if high > low else 1.0
    scaled: NDArray[np.float32] = np.clip((values - low) / spread, 0, 1).astype(np.float32)
    return scaled
