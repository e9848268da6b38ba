"""The image head: an objective over homographies, and Lucas and Kanade's inverse-compositional step for it.

    E(omega) = (sum_x w(x) e(x) + v) / (sum_x w(x) + v),  e(x) = 1/2 |f_t(x) - f_s(omega^-1 x)|^2 / c

over the pixels x of the target. f_s, f_t: feature maps, standardised so that e is 1 on average for maps that have
nothing to do with each other; w: both images have a pixel there; v: as if so many pixels more disagreed, so that a
small overlap is no way to a small E. As omega <- exp(xi) omega moves the target's coordinates, the derivative of
f_t(exp(xi) x) at 0 does for every omega: the target is the template, and its Jacobian is taken once (Baker and
Matthews, IJCV 2004).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dlc_reg._warping import Size, in_front, inverse, normaliser, pixel_grid, project, sample
from dlc_reg.manifold import Homography
from dlc_reg.networks.images import derivatives

VOID = 0.25  # share of the template's pixels that disagree in any case


class Level(NamedTuple):
    """A batch of pairs of feature maps at one scale, with what does not depend on the homography."""

    source: Tensor  # (B, C + 1, h, w): features, and 1 where they hold
    template: Tensor  # (B, P, C): the target's features at its pixels
    weight: Tensor  # (B, P): 1 where they hold
    points: Tensor  # (P, 2) the target's pixels in normalised coordinates
    place: Tensor  # (3, 3): normalised coordinates of the source -> pixels of the map
    slope: Tensor  # (B, P, C, 2): the template's derivative in normalised coordinates
    curvature: Tensor  # (B, P, 4): slope^T slope
    powers: Tensor  # (P, 6): 1, x, y, x^2, xy, y^2 of the points


class ImageAlignment:
    """E over homographies `(*lead, B, 3, 3)` in normalised coordinates, source into target, at one `Level`."""

    manifold: ClassVar[Homography] = Homography()

    def value(self, omega: Tensor, data: Level) -> Tensor:
        """E (*lead, B)."""
        residual, weight = self.residual(omega, data)
        return _mean(0.5 * residual.square().sum(-1), weight)

    def linearize(self, omega: Tensor, data: Level) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Gauss and Newton's H `(*lead, B, 8, 8)` and b `(*lead, B, 8)`, and the value with the share that overlaps."""
        residual, weight = self.residual(omega, data)
        share = (weight / _total(weight)[..., None])[..., None]
        along = (data.slope * residual[..., None]).sum(-2)  # (*lead, B, P, 2)
        basis = _MOTION.to(omega)
        gradient = torch.einsum("...ka,kai->...i", data.powers.mT @ (share * along), basis)
        # the motion of a point is polynomial in where it is, so that moments up to the fourth say all
        weighted = (share * data.curvature)[..., None, :, :] * data.powers.mT[:, :, None]  # (*lead, B, 6, P, 4)
        moments = data.powers.mT @ weighted
        moments = moments.reshape(*moments.shape[:-1], 2, 2)  # (*lead, B, 6, 6, 2, 2)
        hessian = torch.einsum("...klab,kai,lbj->...ij", moments, basis, basis)
        record = {"value": _mean(0.5 * residual.square().sum(-1), weight), "overlap": weight.mean(-1)}
        return hessian, gradient, record

    def residual(self, omega: Tensor, data: Level) -> tuple[Tensor, Tensor]:
        """f_t(x) - f_s(omega^-1 x), `(*lead, B, P, C)`, and the weights `(*lead, B, P)`."""
        back = inverse(omega)
        places = project(data.place.to(omega) @ back, data.points.to(omega))
        seen = sample(data.source, places)
        h, w = data.source.shape[-2:]
        x, y = places.unbind(-1)
        near = (x > -0.5) & (y > -0.5) & (x < w - 0.5) & (y < h - 0.5) & in_front(back, data.points.to(omega), 0.0)
        return data.template - seen[..., :-1], data.weight * seen[..., -1] * near


def _total(weight: Tensor) -> Tensor:
    return weight.sum(-1) + VOID * weight.shape[-1]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return ((weight * values).sum(-1) + VOID * weight.shape[-1]) / _total(weight)


def level_of(
    source: Tensor, target: Tensor, sizes: tuple[Size, Size], scale: int, masks: tuple[Tensor, Tensor]
) -> Level:
    """The level of feature maps (B, C, h, w) and masks (B, 1, h, w), each pixel of which stands for scale x scale.

    `sizes`: of the images, in their own pixels.
    """
    place = coarser(scale) @ torch.linalg.inv(normaliser(sizes[0], device=source.device))
    size = target.shape[-2], target.shape[-1]
    back = normaliser(sizes[1], device=target.device) @ torch.linalg.inv(coarser(scale))
    points = project(back, pixel_grid(size, device=target.device))
    standard = [standardised(maps, mask) for maps, mask in ((source, masks[0]), (target, masks[1]))]
    slope = torch.stack(derivatives(standard[1]), dim=-1) / back[0, 0].to(target.dtype)
    slope = slope.flatten(2, 3).transpose(1, 2)
    return Level(
        torch.cat([standard[0], masks[0].to(source)], dim=1),
        standard[1].flatten(2).mT,
        masks[1].flatten(1).to(target),
        points.to(target),
        place,
        slope,
        (slope.mT @ slope).flatten(-2),
        powers(points).to(target),
    )


def thinned(level: Level, size: Size, stride: int) -> Level:
    """The same with every so manieth pixel of a template of this size, along x and y."""
    device = level.points.device
    rows = torch.arange(size[0] * size[1], device=device).reshape(size)[::stride, ::stride].flatten()
    return level._replace(
        template=level.template[:, rows],
        weight=level.weight[:, rows],
        points=level.points[rows],
        slope=level.slope[:, rows],
        curvature=level.curvature[:, rows],
        powers=level.powers[rows],
    )


def coarser(scale: int) -> Tensor:
    """(3, 3): pixels of the image -> pixels of a map, each of which stands for scale x scale of them."""
    shift = (1 / scale - 1) / 2
    return torch.tensor([[1 / scale, 0, shift], [0, 1 / scale, shift], [0, 0, 1]], dtype=torch.float64)


def standardised(maps: Tensor, mask: Tensor) -> Tensor:
    """Maps (B, C, h, w) less each channel's mean, over the root of the mean square of a pixel, where the mask holds.

    Half the squared distance of two independent pixels is then 1.
    """
    weight = mask.to(maps)
    count = weight.sum((-2, -1), keepdim=True).clamp(min=1)
    centred = (maps - (weight * maps).sum((-2, -1), keepdim=True) / count) * weight
    square = centred.square().sum((-3, -2, -1), keepdim=True) / count
    return centred / (square + 1e-8).sqrt()


def powers(points: Tensor) -> Tensor:
    """1, x, y, x^2, xy, y^2 of points (P, 2): (P, 6)."""
    x, y = points.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1)


def motion(points: Tensor) -> Tensor:
    """d/dxi of exp(hat(xi)) x at 0, (P, 2, 8), for x (P, 2): in the order of `manifold.Homography`'s tangent."""
    return torch.einsum("pk,kai->pai", powers(points), _MOTION.to(points))


# of the powers (6) in the motion along x and y (2) of a tangent's coordinate (8)
_MOTION = torch.zeros(6, 2, 8)
for _power, _axis, _coordinate, _factor in (
    (0, 0, 0, 1), (0, 1, 1, 1), (2, 0, 2, -1), (1, 1, 2, 1), (1, 0, 3, 1), (2, 1, 3, 1), (1, 0, 4, 1), (2, 1, 4, -1),
    (2, 0, 5, 1), (1, 1, 5, 1), (3, 0, 6, -1), (4, 1, 6, -1), (4, 0, 7, -1), (5, 1, 7, -1),
):  # fmt: skip
    _MOTION[_power, _axis, _coordinate] = _factor
