"""What an image alignment returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlc_reg._answers import Verdict, strict_json
from dlc_reg._warping import inside, pixel_grid, project, sample
from dlc_reg.io import replacing


@dataclass(eq=False)  # arrays have no single truth value: a result equals itself alone
class AlignmentResult:
    """The homography that maps the source onto the target, with the evidence for it.

    `homography` (3, 3) float64, last entry 1: centres of the source's pixels into the target, x to the right, y down,
    the first pixel at (0, 0). `correlation`: of the features where both images are, at most 1. `evidence`: the numbers
    that the verdict rests on, by name.
    """

    homography: NDArray[np.float64]
    verdict: Verdict
    verdict_reasons: list[str]
    correlation: float
    evidence: dict[str, float]
    history: list[dict[str, Any]]  # one record an iteration
    settings: dict[str, Any]
    timings: dict[str, float] = field(default_factory=dict)  # seconds a stage
    pictures: tuple[NDArray[Any], NDArray[Any]] | None = field(default=None, repr=False)  # source and target as given

    @property
    def warped(self) -> NDArray[Any]:
        """The source as the target sees it: the target's height and width, the source's channels and number type.

        Zero where the source does not reach (`covered`).
        """
        return self._seen()[0]

    @property
    def covered(self) -> NDArray[np.bool_]:
        """(H, W): the target's pixels that the source covers."""
        return self._seen()[1]

    def _seen(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        assert self.pictures is not None
        source, target = self.pictures
        size = target.shape[0], target.shape[1]
        points = project(torch.linalg.inv(torch.from_numpy(self.homography)), pixel_grid(size))
        holds = inside(points, (source.shape[0], source.shape[1]))
        planes = np.moveaxis(source, -1, 0) if source.ndim == 3 else source[None]
        values = sample(torch.from_numpy(planes.astype(np.float64))[None], points[None])[0]
        image = torch.where(holds[:, None], values, 0.0).reshape(*size, -1).numpy()
        image = image if source.ndim == 3 else image[..., 0]
        if source.dtype.kind in "iub":
            image = np.rint(image)
        return image.astype(source.dtype), holds.reshape(size).numpy()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the images, in plain Python types."""
        return {
            "homography": self.homography.tolist(),
            "verdict": self.verdict.value,
            "verdict_reasons": list(self.verdict_reasons),
            "correlation": self.correlation,
            "evidence": self.evidence,
            "settings": self.settings,
            "timings": self.timings,
            "history": self.history,
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as strict JSON; `options` are those of `json.dumps`."""
        return strict_json(self.to_dict(), **options)

    def __str__(self) -> str:
        rows = "\n".join("  " + " ".join(f"{x:12.6g}" for x in row) for row in self.homography)
        verdict = f"{self.verdict}: {'; '.join(self.verdict_reasons)}"
        return f"{verdict}\ncorrelation {self.correlation:.3f}, homography\n{rows}"

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws both images, one over the other, and E's descent, with Matplotlib (extra `viz`); saves to `path`.

        Returns the figure.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError('plots need Matplotlib: pip install "dlc_reg[viz]"') from None
        assert self.pictures is not None
        figure = Figure(figsize=(12, 7), layout="constrained")
        axes = figure.subplots(2, 3)
        warped, covered = self._seen()
        target = _grey(self.pictures[1])
        seen = np.where(covered, _grey(warped), 0)
        over = np.stack([seen, target, np.where(covered, target, 0)], axis=-1)
        rows, columns = np.indices(target.shape) // max(max(target.shape) // 8, 1)
        board = np.where(((rows + columns) % 2 == 0) & covered, seen, target)
        images = [self.pictures[0], self.pictures[1], warped, over, board]
        titles = ["source", "target", "source as the target sees it", "red: source, cyan: target", "in turns"]
        for axis, image, title in zip(axes.flat, images, titles, strict=False):
            axis.imshow(_shown(image), cmap="gray")
            axis.set_title(title)
            axis.set_axis_off()
        values = [(k, record["value"]) for k, record in enumerate(self.history) if "value" in record]
        axes.flat[-1].plot(*zip(*values, strict=True), ".-")
        axes.flat[-1].set(xlabel="iteration", ylabel="E", title="descent, coarse to fine")
        figure.suptitle(f"{self.verdict}: {'; '.join(self.verdict_reasons)}", wrap=True)
        if path is not None:
            named = Path(path) if Path(path).suffix else Path(f"{path}.png")
            with replacing(named, overwrite=True) as draft:
                figure.savefig(draft, dpi=120)
        return figure


def _grey(image: NDArray[Any]) -> NDArray[np.float64]:
    grey: NDArray[np.float64] = image.astype(np.float64)
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    low, high = np.quantile(grey[np.isfinite(grey)], [0.01, 0.99])
    shown: NDArray[np.float64] = np.clip((np.nan_to_num(grey) - low) / max(high - low, 1e-12), 0, 1)
    return shown


def _shown(image: NDArray[Any]) -> NDArray[Any]:
    """What Matplotlib takes: bytes, or [0, 1]."""
    if image.dtype == np.uint8 or image.ndim == 2:
        return image
    top = np.nanmax(np.abs(image.astype(np.float64))) or 1.0
    return np.clip(np.nan_to_num(image / top), 0, 1)
