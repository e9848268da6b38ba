"""Figures of image alignment: shares of pairs by corner error, for ours and for the peers, on the same pairs.

A method is given the two images and nothing else: no truth can reach its answer. The published values beside are those
of the papers' own pairs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlc_reg._image_pairs import PROTOCOL, ImagePairs
from dlc_reg._tables import markdown
from dlc_reg._warping import corner_error
from dlc_reg.alignment import METHODS, Verdict, align_images
from dlc_reg.errors import InputError

LIMITS = (0.1, 0.5, 1, 3, 5, 10, 20)
Image = NDArray[np.uint8]  # (H, W, 3)
Answer = tuple[NDArray[np.float64] | None, str]  # the homography, None for no answer, and the verdict
ImageMethod = Callable[[Image, Image], Answer]

PUBLISHED = {
    "MSCOCO": {
        "SIFT+RANSAC": (0, 4.7, 68.3, 84.2, 90.3, 95.3, 96.6),
        "CLKN": (35.2, 83.3, 83.3, 94.3, 95.8, 97.5, 98.5),
        "DeepLK": (17.2, 72.3, 92.8, 96.8, 97.7, 98.9, 99.0),
        "PRISE": (52.8, 83.3, 97.3, 98.4, 98.8, 99.3, 99.3),
    },
    "GoogleEarth": {
        "SIFT+RANSAC": (0.2, 3.4, 9.0, 23.1, 41.3, 50.4, 59.9),
        "CLKN": (0.3, 2.9, 3.5, 4.2, 4.3, 8.8, 75.0),
        "DeepLK": (0, 3.5, 12.0, 70.2, 84.5, 90.6, 95.5),
        "PRISE": (0.2, 25.4, 53.0, 82.7, 87.2, 90.7, 96.7),
    },
    "GoogleMap": {
        "SIFT+RANSAC": (0, 0, 0, 0, 0, 2.7, 3.4),
        "CLKN": (0, 0, 0, 1.6, 1.9, 8.7, 22.5),
        "DeepLK": (0, 2.3, 16.8, 61.3, 73.4, 83.2, 93.8),
        "PRISE": (17.5, 48.1, 56.9, 76.2, 80.0, 86.1, 94.0),
    },
}
"""Per cent of pairs below LIMITS, as PRISE's tables have them (Zhang et al., CVPR 2023)."""


@dataclass(frozen=True)
class ImageFigures:
    """errors (pairs,) in pixels of 192, infinite where there is no answer; verdicts; seconds a pair, the median."""

    errors: NDArray[np.float64]
    verdicts: list[str]
    seconds: float

    @property
    def shares(self) -> list[float]:
        return [float((self.errors < limit).mean()) for limit in LIMITS]

    @property
    def trusted(self) -> NDArray[np.bool_]:
        return np.array([verdict == Verdict.ALIGNED.value for verdict in self.verdicts])

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Trusted, and 10 pixels off or more."""
        return self.trusted & ~(self.errors < 10)


def middle(source: Image, target: Image) -> Answer:
    """The dumb baseline: the template in the middle of the input."""
    answer = np.eye(3)
    answer[:2, 2] = [(target.shape[1] - source.shape[1]) / 2, (target.shape[0] - source.shape[0]) / 2]
    return answer, ""


def ecc(source: Image, target: Image) -> Answer:
    """OpenCV's ECC (Evangelidis and Psarakis, TPAMI 2008) on blurred gradients, coarse to fine, from the middle."""
    cv2 = _opencv()

    def edges(image: Image, scale: float, blur: int) -> Any:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        slope = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
        return cv2.GaussianBlur(slope, (blur, blur), 0)

    matrix = middle(source, target)[0]
    assert matrix is not None
    for scale in (0.25, 0.5, 1.0):
        shift = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
        start = (shift @ matrix @ np.linalg.inv(shift)).astype(np.float32)
        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-6)
        try:
            _, found = cv2.findTransformECC(
                edges(source, scale, 5), edges(target, scale, 5), start, cv2.MOTION_HOMOGRAPHY, criteria, None, 5
            )
        except cv2.error:  # it says so where it diverges
            break
        matrix = np.linalg.inv(shift) @ found @ shift
    return matrix, ""


def sift(source: Image, target: Image) -> Answer:
    """OpenCV's SIFT, matches by Lowe's ratio of 0.8, and RANSAC at 3 pixels."""
    cv2 = _opencv()
    detector = cv2.SIFT_create()
    (points, first), (others, second) = (detector.detectAndCompute(image, None) for image in (source, target))
    if first is None or second is None or len(points) < 4 or len(others) < 4:
        return None, ""
    matches = cv2.BFMatcher().knnMatch(first, second, k=2)
    good = [pair[0] for pair in matches if len(pair) == 2 and pair[0].distance < 0.8 * pair[1].distance]
    if len(good) < 4:
        return None, ""
    cv2.setRNGSeed(0)
    here = np.array([points[m.queryIdx].pt for m in good], np.float32)
    there = np.array([others[m.trainIdx].pt for m in good], np.float32)
    matrix, _ = cv2.findHomography(here, there, cv2.RANSAC, 3.0, maxIters=5000, confidence=0.999)
    return (None if matrix is None else matrix), ""


def _opencv() -> Any:
    """Untyped: OpenCV's stubs lack what is used here."""
    return importlib.import_module("cv2")


PEERS: dict[str, ImageMethod] = {"middle": middle, "ecc": ecc, "sift": sift}


def image_method(name: str) -> ImageMethod:
    """middle, ecc or sift (OpenCV); auto, gradients, signed or intensity (ours); or ours with a file of weights."""
    if name in ("ecc", "sift"):
        try:
            _opencv()
        except ImportError:
            raise InputError("method", name, "OpenCV: pip install opencv-python-headless") from None
    if name in PEERS:
        return PEERS[name]
    return aligned_by(name if name in METHODS or name == "auto" else name.removeprefix("learned:"))


def aligned_by(features: str | nn.Module) -> ImageMethod:
    """`align_images` by a method's name, a file of weights, or a network."""

    def ours(source: Image, target: Image) -> Answer:
        result = align_images(source, target, method=features)
        return result.homography, result.verdict.value

    return ours


def installed() -> list[str]:
    """All methods without weights that can run here."""
    try:
        _opencv()
    except ImportError:
        return ["middle", "auto", *METHODS]
    return [*PEERS, "auto", *METHODS]


def evaluate_images(
    pairs: ImagePairs, methods: dict[str, ImageMethod], *, unrelated: bool = False, progress: bool = False
) -> dict[str, ImageFigures]:
    """Figures by method's name, all on the same pairs.

    With `unrelated` each source meets the target of the next pair of another picture: every answer is wrong, and what
    counts is how many are trusted.
    """
    from tqdm import tqdm

    errors: dict[str, list[float]] = {name: [] for name in methods}
    verdicts: dict[str, list[str]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for item in tqdm(range(len(pairs)), disable=not progress):
        pair = pairs[item]
        if unrelated:
            pair = replace(pair, target=_of_another(pairs, item), truth=torch.full((3, 3), torch.nan))
        source, target = (
            np.ascontiguousarray((image.movedim(0, -1) * 255).round().to(torch.uint8).numpy())
            for image in (pair.source, pair.target)
        )
        for name, method in methods.items():
            began = time.perf_counter()
            answer, verdict = method(source.copy(), target.copy())
            seconds[name].append(time.perf_counter() - began)
            estimate = torch.full((3, 3), torch.nan) if answer is None else torch.from_numpy(np.asarray(answer))
            error = float(corner_error(estimate, pair.truth, (source.shape[0], source.shape[1])))
            errors[name].append(error * PROTOCOL / pairs.size)
            verdicts[name].append(verdict)
    return {
        name: ImageFigures(np.array(errors[name]), verdicts[name], float(np.median(seconds[name]))) for name in methods
    }


def _of_another(pairs: ImagePairs, item: int) -> torch.Tensor:
    """The target of the next pair that is of another picture."""
    index = pairs[item].index
    for k in range(1, len(pairs)):
        other = pairs[(item + k) % len(pairs)]
        if other.index != index:
            return other.target
    raise InputError("pairs", "pairs of one picture", "pairs of two or more pictures")


def image_table(figures: dict[str, ImageFigures], published: str | None = None) -> str:
    """The table as Markdown: shares in per cent; for ours, how many answers were trusted, and how many of these were
    10 pixels off or more."""
    header = ["method", *(f"< {limit:g} px" for limit in LIMITS), "trusted", "of these wrong", "s a pair"]
    rows = []
    for name, f in figures.items():
        judged = any(f.verdicts)
        trust = [f"{100 * f.trusted.mean():.1f}", str(int(f.wrong.sum()))] if judged else ["", ""]
        rows.append([name, *(f"{100 * share:.1f}" for share in f.shares), *trust, f"{f.seconds:.3f}"])
    if published:
        for name, shares in PUBLISHED[published].items():
            rows.append([f"*{name}*", *(f"{share:.1f}" for share in shares), "", "", ""])
    text = markdown(header, rows)
    about = f"\n\nIn italics: published by PRISE, CVPR 2023, on {published}, not run here; other pairs than these."
    return text + (about if published else "")


def describe(pairs: ImagePairs) -> dict[str, Any]:
    """What the pairs are made of."""
    pictures = pairs.pictures
    return {
        "pictures": len(pictures),
        "pairs": len(pairs),
        "seed": pairs.seed,
        "size": pairs.size,
        "zoom": pairs.zoom,
        "reach": pairs.reach,
        "photometric": pairs.photometric,
        "modes": "two kinds" if pictures.partner is not None else "one kind",
        "checksum": pictures.checksum,
        "licences": pictures.licences,
    }


def names(chosen: Sequence[str], weights: Sequence[str]) -> list[str]:
    """The methods that were asked for; without any, all that can run here."""
    if not chosen and not weights:
        return installed()
    return [*chosen, *(f"learned:{path}" for path in weights)]
