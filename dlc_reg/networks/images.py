"""What images are compared by: maps of features at three levels, from learned networks or from none.

Each takes images (B, C, H, W), C 1 or 3, and returns maps (B, channels, H // 2^k, W // 2^k) for the levels k = 0, 1, 2,
finest first: the map's pixel (i, j) stands for the image's square of 2^k x 2^k pixels from (2^k i, 2^k j).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dlc_reg.errors import InputError
from dlc_reg.networks.arguments import recorded

LEVELS = 3
SMALLEST = 4 << (LEVELS - 1)  # pixels a side, so that the coarsest map has four


@recorded
class FeatureEncoder(nn.Module):
    """A small pyramid with a branch for each of two images: convolutions down three levels, and up again with sums.

    `widths`: channels of the trunk at the three levels; `out`: of the maps. With `shared` both images go through one
    branch, for images of one kind. `branch` 0 is the source's, 1 the target's. Images are first standardised, each
    channel by itself, so that brightness and contrast of the whole do not matter.
    """

    def __init__(self, widths: Sequence[int] = (12, 20, 28), out: int = 8, shared: bool = False) -> None:
        super().__init__()
        if len(widths) != LEVELS or min(widths) < 1 or out < 1:
            raise InputError("widths, out", f"{tuple(widths)}, {out}", f"{LEVELS} numbers of channels, and one, from 1")
        self.shared = shared
        self.branches = nn.ModuleList([_Branch(widths, out) for _ in range(1 if shared else 2)])

    def forward(self, images: Tensor, branch: int = 0) -> list[Tensor]:
        colour = images.expand(-1, 3, -1, -1)
        centred = colour - colour.mean((-2, -1), keepdim=True)
        spread = centred.square().mean((-2, -1), keepdim=True)
        maps: list[Tensor] = self.branches[0 if self.shared else branch](centred / (spread + 1e-6).sqrt())
        return maps


class _Branch(nn.Module):
    def __init__(self, widths: Sequence[int], out: int) -> None:
        super().__init__()
        before = [3, *widths]
        self.down = nn.ModuleList([_block(before[k], widths[k]) for k in range(LEVELS)])
        self.up = nn.ModuleList([nn.Conv2d(widths[k + 1], widths[k], 1) for k in range(LEVELS - 1)])
        self.heads = nn.ModuleList([nn.Sequential(_block(w, w), nn.Conv2d(w, out, 1)) for w in widths])

    def forward(self, x: Tensor) -> list[Tensor]:
        trunk: list[Tensor] = []
        for k, block in enumerate(self.down):
            x = block(x if k == 0 else functional.avg_pool2d(x, 2))
            trunk.append(x)
        maps = [self.heads[-1](x)]
        for k in reversed(range(LEVELS - 1)):
            larger = functional.interpolate(self.up[k](x), trunk[k].shape[-2:], mode="bilinear", align_corners=False)
            x = trunk[k] + larger
            maps.append(self.heads[k](x))
        return maps[::-1]


def _block(before: int, after: int) -> nn.Sequential:
    convolutions = [nn.Conv2d(c, after, 3, padding=1, padding_mode="replicate") for c in (before, after)]
    return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU())


class Intensity(nn.Module):
    """The image itself, for Lucas and Kanade's photometric alignment, less its local mean over its local contrast."""

    def forward(self, images: Tensor, branch: int = 0) -> list[Tensor]:
        return [self._level(level) for level in pyramid(images)]

    def _level(self, image: Tensor) -> Tensor:
        centred = image - blurred(image, 4.0)
        contrast = blurred(centred.square(), 4.0)
        level: Tensor = centred / (contrast + 0.05 * contrast.mean((-2, -1), keepdim=True) + 1e-12).sqrt()
        return level


class Gradients(nn.Module):
    """Directions of edges, without weights: |gradient . d| for some directions d, blurred, over their local length.

    After the channel features of oriented gradients (Ye et al., IEEE TGRS 2019). The size makes edges of either sign
    alike, and the local length takes out tones and uneven light, so that images of different kinds can be compared.
    `signed` keeps the sign instead, which says more where both images are of one kind.
    """

    def __init__(self, directions: int = 8, blur: float = 1.0, signed: bool = False) -> None:
        super().__init__()
        self.directions, self.blur, self.signed = directions, blur, signed

    def forward(self, images: Tensor, branch: int = 0) -> list[Tensor]:
        return [self._level(level) for level in pyramid(images.mean(1, keepdim=True))]

    def _level(self, image: Tensor) -> Tensor:
        x, y = derivatives(blurred(image, 0.7))
        turn = torch.arange(self.directions, dtype=image.dtype, device=image.device) * (math.pi / self.directions)
        responses = turn.cos()[:, None, None] * x + turn.sin()[:, None, None] * y
        responses = responses if self.signed else responses.abs()
        energy = blurred((x.square() + y.square()), 2 * self.blur + 1)
        typical = energy.mean((-2, -1), keepdim=True)
        return blurred(responses, self.blur) / (energy + 0.05 * typical + 1e-12).sqrt()


def pyramid(images: Tensor) -> list[Tensor]:
    """The images, and averages over 2 x 2 and 4 x 4 pixels."""
    levels = [images]
    for _ in range(LEVELS - 1):
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


def derivatives(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences (B, C, H, W) a pixel along x and y; at the border those of the repeated border."""
    wide = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    x = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    y = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    return x, y


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur (B, C, H, W), the border repeated."""
    reach = min(math.ceil(2.5 * sigma), *(n - 1 for n in maps.shape[-2:]))
    offsets = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = (-offsets.square() / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    channels = maps.shape[1]
    wide = functional.pad(maps, (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(wide, kernel.expand(channels, 1, 1, -1), groups=channels)
    return functional.conv2d(rows, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
