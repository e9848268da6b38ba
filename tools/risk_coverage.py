"""How often a trusted pose is wrong, by how much of what is right is trusted: scenes, and objects of another kind.

    python tools/risk_coverage.py FRAGMENTS.npz [--objects SHAPES.npz] [--pairs 150] [--seed 202] [--viewpoints]
      [--plot CURVES.png]

Scenes are registered as `calibrate_verdict.py` does, other pairs of them by default, and each is judged by a trust that
was fitted on the others. Objects are crops of shapes that no turn lays on themselves, apart and with jitter
("rpmnet-independent" of `dlc_reg.protocols`), and as many crops of two shapes, which have no answer; the trust that
judges them is the package's, which has seen scenes alone. Right is within 15 degrees and 0.3 m, or 0.1 of an object's
unit sphere; near is wrong and within 15 degrees and 1 m, or 0.3; the rest is gross, pairs without an answer among it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from calibrate_verdict import Registration, collect, registered, settle
from landscape import plotter
from numpy.typing import NDArray
from tqdm import tqdm

from dlc_reg.evaluation import keep_asymmetric
from dlc_reg.geometry import PointCloud
from dlc_reg.io import replacing
from dlc_reg.protocols import PairDataset, Shapes
from dlc_reg.registration.verification import firmly, trust

Array = NDArray[np.float64]
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # of trust, a row of the table each
PROTOCOL = "rpmnet-independent"


@dataclass(frozen=True)
class Judged:
    """Registrations and the trust in each; what is right and near of them, in their unit."""

    name: str
    found: Sequence[Registration]
    odds: Array
    right_within: float
    near_within: float

    @property
    def trust(self) -> Array:
        return np.asarray(1 / (1 + np.exp(-self.odds)))

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.array([r.within(15, self.right_within) for r in self.found])

    @property
    def near(self) -> NDArray[np.bool_]:
        return np.array([r.within(15, self.near_within) for r in self.found]) & ~self.right

    def curve(self) -> tuple[Array, Array]:
        """The share of the right that is trusted, and the share of the trusted that is wrong, from firm trust down."""
        right = self.right[np.argsort(-self.odds, kind="stable")]
        return right.cumsum() / right.sum(), (~right).cumsum() / np.arange(1, len(right) + 1)

    def rows(self) -> list[str]:
        rows = []
        for level in LEVELS:
            kept = self.trust >= level
            errors = np.array([(np.degrees(r.rotation), r.translation) for r in self.found if r.matching])
            errors = errors[kept[[r.matching for r in self.found]]]
            strangers = kept & np.array([not r.matching for r in self.found])
            gross = kept & ~self.right & ~self.near & ~strangers
            wrong, covered = (kept & ~self.right).sum() / max(kept.sum(), 1), self.right[kept].sum() / self.right.sum()
            spread = " | ".join(
                f"{np.median(e):.3g} / {np.percentile(e, 95):.3g}" if len(errors) else "" for e in errors.T
            )
            rows.append(
                f"| {self.name} | {level} | {covered:.0%} | {wrong:.1%} of {kept.sum()} "
                f"| {(kept & self.near).sum()} / {gross.sum()} / {strangers.sum()} | {spread} |"
            )
        return rows


def objects(shapes: Shapes, count: int, seed: int) -> tuple[list[Registration], Array]:
    """Of `count` pairs of crops of a shape, and of as many of two shapes, with the log odds of the trust."""
    pairs = PairDataset(shapes, PROTOCOL, seed=seed, length=count + 1)
    found = []
    for i in tqdm(range(count)):
        pair, other = pairs[i], pairs[i + 1]
        source, target, strange = (PointCloud.from_any(c) for c in (pair.source, pair.target, other.target))
        found.append(registered(source, target, pair.truth.numpy().astype(np.float64), f"shape {pair.index}"))
        if other.index != pair.index:
            found.append(registered(source, strange, None, f"shape {pair.index}"))
    settled = [quick if firmly(quick.evidence) else whole for quick, whole in found]
    odds = [np.log(p) - np.log1p(-p) for p in (min(trust(r.evidence), 1 - 1e-12) for r in settled)]
    return settled, np.array(odds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--objects", help="shapes, as datasets/cad.py or modelnet40.py prepare them")
    parser.add_argument("--split", default="test", help="of the shapes")
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=202)
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each fragment's origin")
    parser.add_argument("--plot", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    shapes = keep_asymmetric(Shapes.load(options.objects).select(split=options.split)) if options.objects else None
    scenes = settle(*collect(options.data, options.pairs, options.seed, options.viewpoints))
    judged = [Judged("scenes, held out", scenes.found, scenes.odds, 0.3, 1.0)]
    if shapes is not None:
        judged.append(Judged("objects", *objects(shapes, options.pairs, options.seed), 0.1, 0.3))
    for j in judged:
        print(f"{j.name}: {len(j.found)} registrations, {j.right.sum()} right, viewpoints {options.viewpoints}")
    print("| | trust from | right ones trusted | trusted ones wrong | near / gross / no answer "
          "| error of the trusted, median / 95% [deg] | [length] |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for j in judged:
        print("\n".join(j.rows()))
    if options.plot:
        draw(judged, options.plot)


def draw(judged: Sequence[Judged], path: Path) -> None:
    pyplot = plotter()
    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for j in judged:
        coverage, risk = j.curve()
        axis.plot(100 * coverage, 100 * risk, label=j.name)
    axis.set(xlabel="right ones that are trusted [%]", ylabel="trusted ones that are wrong [%]", xlim=(0, 100))
    axis.set_ylim(0, 15)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    with replacing(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=130)


if __name__ == "__main__":
    main()
