"""The image head: homographies by inverse-compositional Lucas-Kanade on feature maps, coarse to fine.

    result = align_images("source.png", "target.png")
    result.homography, result.verdict, result.warped

What is minimised is `ImageAlignment`; features are classical (`networks.images.Gradients`, `Intensity`) or learned
(`networks.images.FeatureEncoder`). `homography_from_corners` and `project` are the corner parametrisation.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlc_reg._alignment_input import Picture, read_picture
from dlc_reg._alignment_objective import ImageAlignment, Level, level_of
from dlc_reg._alignment_result import AlignmentResult
from dlc_reg._alignment_solve import ITERATIONS, KEPT, Descent, Sides, corner_std, correlation, descend
from dlc_reg._alignment_verdict import judge
from dlc_reg._answers import Verdict
from dlc_reg._warping import SQUARE, corner_error, corners, homography_from_corners, in_front, inverse, project
from dlc_reg.errors import InputError
from dlc_reg.networks.files import load_network, save_network
from dlc_reg.networks.images import FeatureEncoder, Gradients, Intensity
from dlc_reg.ops._threads import one_thread

__all__ = [
    "ARCHITECTURES",
    "METHODS",
    "AlignmentResult",
    "ImageAlignment",
    "Level",
    "Verdict",
    "align_images",
    "corner_error",
    "corners",
    "homography_from_corners",
    "level_of",
    "load_features",
    "project",
    "save_features",
]

ARCHITECTURES: dict[str, type[nn.Module]] = {"features": FeatureEncoder}
METHODS: dict[str, Any] = {
    "gradients": Gradients,
    "signed": lambda: Gradients(directions=2, signed=True),
    "intensity": Intensity,
}
AUTO = ("signed", "gradients")  # the second where the first cannot be trusted
_TRUST = {Verdict.FAILED: 0, Verdict.DOUBTFUL: 1, Verdict.ALIGNED: 2}
SHIFTS = ((0.0, 0.0), (0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3))  # starts about `init`, of half the side


def align_images(
    source: Any,
    target: Any,
    *,
    init: Any = None,
    method: str | nn.Module = "auto",
    source_mask: Any = None,
    target_mask: Any = None,
    max_rotation_deg: float = 30.0,
    max_scale: float = 1.5,
    max_size: int = 1024,
    device: Any = None,
) -> AlignmentResult:
    """Finds the homography that maps the source onto the target, and says whether it can be trusted.

    Args:
        source, target: paths, Pillow's images, NumPy arrays (H, W) or (H, W, C), tensors (C, H, W) too; grey or colour,
            of any integer or float type; an alpha channel is a mask. They may be of different size and kind.
        init: (3, 3), source pixel centres into the target's, to start from in place of the search.
        method: "signed", directions of edges, for images of one kind; "gradients", the same without their sign, for
            images of several kinds; "intensity", the pixels themselves; a file of weights, or a network. "auto" is
            "signed", and "gradients" where the answer of that cannot be trusted.
        source_mask, target_mask: bool (H, W), True where there is an image.
        max_rotation_deg, max_scale: how far the search goes either way, for pixels of both images of one size.
        max_size: longer images are looked at no finer than this many pixels a side.
        device: of the computation; None: the CPU.

    Raises:
        InputError: what is not an image, or an argument that cannot be.
    """
    began = time.perf_counter()
    pictures = read_picture(source, source_mask, "source"), read_picture(target, target_mask, "target")
    start = None if init is None else _checked(init, pictures[0])
    _check_limits(max_rotation_deg, max_scale, max_size)
    sides = Sides.of(*pictures, device or "cpu")
    limits = (max_rotation_deg, max_scale)
    results: list[AlignmentResult] = []
    for name in AUTO if method == "auto" else (method,):
        features = _features(name).to(device or "cpu").eval()
        results.append(_align(pictures, sides, features, start, limits, max_size))
        results[-1].settings["method"] = name if isinstance(name, str) else type(name).__name__
        if results[-1].verdict is Verdict.ALIGNED:
            break
    best = max(results, key=lambda result: (_TRUST[result.verdict], -result.evidence["energy"]))
    best.settings["tried"] = [result.settings["method"] for result in results]
    best.timings["total"] = time.perf_counter() - began
    return best


def _align(
    pictures: tuple[Picture, Picture],
    sides: Sides,
    features: nn.Module,
    start: Tensor | None,
    limits: tuple[float, float],
    longest: int,
) -> AlignmentResult:
    """The answer that one kind of features gives."""
    # the smaller image is the template: it is the one that is likely to lie inside the other
    forward = bool(np.prod(pictures[1].size) <= np.prod(pictures[0].size))
    sides = sides if forward else sides.swapped()
    begun = start if forward or start is None else torch.linalg.inv(start)
    with one_thread(), torch.no_grad():
        found, evidence, spent = _solve(sides, features, begun, limits, longest)
    places = tuple(place.cpu() for place in sides.places)
    pixels = torch.linalg.inv(places[1]) @ found.omega[0].double().cpu() @ places[0]
    homography = (pixels if forward else inverse(pixels)).numpy()
    verdict, reasons = judge(homography, pictures[0].size, evidence)
    settings = {
        "template": "target" if forward else "source",
        "init": start is not None,
        "max_rotation_deg": limits[0],
        "max_scale": limits[1],
        "halvings": dict(zip(("search", "finest"), sides.shrinks(longest), strict=True)),
    }
    return AlignmentResult(
        homography / homography[2, 2],
        verdict,
        reasons,
        evidence["correlation"],
        evidence,
        found.history,
        settings,
        spent,
        (pictures[0].pixels, pictures[1].pixels),
    )


def _solve(
    sides: Sides, features: nn.Module, start: Tensor | None, limits: tuple[float, float], longest: int
) -> tuple[Descent, dict[str, float], dict[str, float]]:
    """The descent to the answer, what speaks for it, and seconds."""
    working, finest = sides.shrinks(longest)
    began = time.perf_counter()
    if start is None:
        omega = sides.candidates(features, working, *limits)
    else:
        given = sides.places[1].cpu() @ start @ torch.linalg.inv(sides.places[0].cpu())
        omega = torch.stack([_shift(x, y) @ given for x, y in SHIFTS])
    omega = omega / torch.linalg.det(omega).abs()[:, None, None] ** (1 / 3)
    searched = time.perf_counter()
    levels = sides.levels(features, working)[::-1]
    if start is None:
        found = descend(levels, omega, KEPT, ITERATIONS, "levels")
        rivals = found.value[1:]
    else:
        found = descend(levels, omega[:1], (1, 1, 1), ITERATIONS, "levels")
        others = descend(levels, omega[1:], (3, 3, 3), ITERATIONS, "shifted starts")
        apart = [k for k in range(len(others.omega)) if _apart(others.omega[k], found.omega[0]) > 0.06]
        rivals = others.value[apart]
    gap = float(rivals.min() - found.value[0]) if len(rivals) else float("nan")
    found = Descent(found.omega[:1], found.value[:1], found.overlap[:1], found.history)
    level = levels[-1]
    for halvings in reversed(range(finest, working)):
        level = sides.levels(features, halvings, 1)[0]
        finer = descend([level], found.omega, (1,), (8,), "finer")
        found = Descent(finer.omega, finer.value, finer.overlap, found.history + finer.history)
    mirrored = sides.swapped().levels(features, finest, 1)
    back = descend(mirrored, inverse(found.omega), (1,), (8,), "backward")
    evidence = {
        "correlation": correlation(found.omega, level),
        "energy": float(found.value[0]),
        "gap": gap,
        "overlap": float(found.overlap[0]),
        "backward": _disagreement(sides, found.omega[0], inverse(back.omega[0])),
        "corner_std": corner_std(found.omega, level, float(found.value[0]), sides.sizes[1]),
    }
    ended = time.perf_counter()
    return found, evidence, {"search": searched - began, "descent": ended - searched}


def load_features(path: str | Path) -> FeatureEncoder:
    """The network of a file that `save_features` wrote, in eval(), with its `card`."""
    network = load_network(Path(path), ARCHITECTURES)
    assert isinstance(network, FeatureEncoder)
    return network


def save_features(path: str | Path, network: FeatureEncoder, card: dict[str, Any]) -> None:
    """Writes weights as safetensors."""
    save_network(Path(path), network, card, ARCHITECTURES)


def _features(method: str | nn.Module) -> nn.Module:
    if isinstance(method, nn.Module):
        return method
    if method in METHODS:
        features: nn.Module = METHODS[method]()
        return features
    if not Path(method).is_file():
        raise InputError("method", repr(method), f"auto, {', '.join(METHODS)}, or a file of weights")
    return load_features(method)


def _checked(init: Any, source: Picture) -> Tensor:
    try:
        given = init.detach().cpu().numpy() if isinstance(init, Tensor) else init
        matrix = torch.from_numpy(np.array(given, dtype=np.float64))
    except (TypeError, ValueError) as cause:
        raise InputError("init", type(init).__name__, "a 3 x 3 matrix of numbers") from cause
    if matrix.shape != (3, 3) or not torch.isfinite(matrix).all():
        raise InputError("init", f"shape {tuple(matrix.shape)}", "a 3 x 3 matrix of finite numbers, source into target")
    points = corners(source.size)
    third = points @ matrix[2, :2] + matrix[2, 2]
    determinant = float(torch.linalg.det(matrix))
    if not determinant or not bool((third * third[0] > 0).all()):
        given = f"a matrix of determinant {determinant:.3g} that sends corners to infinity or together"
        raise InputError("init", given, "a homography that keeps the source before the horizon")
    if not bool(in_front(matrix, points).all()):
        raise InputError("init", "a homography that mirrors", "one that keeps the orientation; flip an image before")
    return matrix


def _check_limits(rotation: float, scale: float, longest: int) -> None:
    if not 0 <= rotation <= 180:
        raise InputError("max_rotation_deg", str(rotation), "0 to 180 degrees")
    if not 1 <= scale <= 4:
        raise InputError("max_scale", str(scale), "1 to 4")
    if not longest >= 64:
        raise InputError("max_size", str(longest), "64 pixels or more")


def _shift(x: float, y: float) -> NDArray[Any] | Tensor:
    return torch.tensor([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=torch.float64)


def _apart(omega: Tensor, other: Tensor) -> float:
    """Mean distance of the images of [-1, 1]^2's corners."""
    return float((project(omega.double(), SQUARE) - project(other.double(), SQUARE)).norm(dim=-1).mean())


def _disagreement(sides: Sides, omega: Tensor, other: Tensor) -> float:
    """Mean distance of where the template's corners come from, in pixels of the other image."""
    back = [inverse(m.double().cpu()) for m in (omega, other)]
    place = sides.places
    points = project(place[1].cpu(), corners(sides.sizes[1]))
    there = [project(torch.linalg.inv(place[0].cpu()) @ m, points) for m in back]
    distance = (there[0] - there[1]).norm(dim=-1).mean()
    return float(distance) if bool(torch.isfinite(distance)) else float("inf")
