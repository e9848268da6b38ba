"""What each descriptor is worth to the global search: FPFH, signatures, learned ones, and their unions.

    python tools/compare_descriptors.py FRAGMENTS.npz [--pairs 60] [--seed 0] [--viewpoints] [--weights FOLDER]
    python tools/compare_descriptors.py PAIRS.csv [--viewpoints] [--allow-outside]

FRAGMENTS.npz is described in `fragments.py`, PAIRS.csv, with true poses, in `evaluate_pairs.py`. For each set of
descriptors: mutual matches a pair; those that the truth lays within one and within two working voxels; their share
(inlier ratio); the share of pairs where that is above 5%; the share of pairs whose candidates contain the truth, and
where the search's own choice, the best by score, is right; and seconds a pair for describing, matching and searching
(thinning and normals are left out). Right is within 15 degrees and 0.3 m, or for PAIRS.csv with the source's centre
within 5% of the target's extent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fragments import Fragments
from tqdm import tqdm

from dlc_reg._many_list import read_entries
from dlc_reg.geometry import PointCloud, globalize, localize
from dlc_reg.metrics import rotation_error, translation_error
from dlc_reg.networks.descriptors import Descriptors, file_name, histograms, read, shipped
from dlc_reg.registration.description import nearest
from dlc_reg.registration.global_search import GlobalSearch, Thinned, working_voxel_size

SETS = {
    "FPFH": ("fpfh",),
    "signatures": ("signatures",),
    "learned": ("learned",),
    "FPFH, signatures": ("fpfh", "signatures"),
    "FPFH, learned": ("fpfh", "learned"),
    "all three": ("fpfh", "signatures", "learned"),
}
WITHIN_DEG, WITHIN, SHARE = 15.0, 0.3, 0.05
MATCHED = 0.05


class Known(NamedTuple):
    """A pair with its true pose, and how far from it is right: in metres, or as the share of the target's extent."""

    source: PointCloud
    target: PointCloud
    pose: np.ndarray
    within: float | None

    def right(self, pose: np.ndarray) -> bool:
        if np.degrees(float(rotation_error(pose, self.pose))) >= WITHIN_DEG:
            return False
        if self.within is not None:
            return float(translation_error(pose, self.pose)) < self.within
        moved, true = (p[:3, :3] @ self.source.origin + p[:3, 3] for p in (pose, self.pose))
        return bool(np.linalg.norm(moved - true) < SHARE * self.target.extent)


class Counts(NamedTuple):
    """Of a pair and a set of descriptors."""

    matches: float
    within_one: float
    within_two: float
    ratio: float
    above: float
    contained: float
    chosen: float
    seconds: float


def known_pairs(options: argparse.Namespace) -> Iterator[tuple[str, list[Known]]]:
    """A name and its pairs, for each benchmark of the file."""
    if options.data.suffix == ".csv":
        entries = read_entries(options.data, allow_outside=options.allow_outside, truths=True)
        eye = (0, 0, 0) if options.viewpoints else None
        pairs = []
        for e in entries:
            clouds = (PointCloud.from_any(p, viewpoint=eye, remove_non_finite=True) for p in (e.source, e.target))
            pairs += [Known(*clouds, e.truth, None)] if e.truth is not None else []
        yield options.data.stem, pairs
        return
    fragments = Fragments(options.data)
    for benchmark in fragments.benchmarks:
        tasks = fragments.pairs(benchmark, options.pairs, np.random.default_rng(options.seed))
        pairs = []
        for task in tasks:
            clouds = (fragments.cloud(i, viewpoint=options.viewpoints) for i in (task.source, task.target))
            pairs.append(Known(*clouds, task.T_target_source, WITHIN))
        yield benchmark, pairs


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun


@torch.no_grad()
def compared(pair: Known, network: Descriptors) -> dict[str, Counts]:
    voxel = working_voxel_size(pair.source, pair.target)
    oriented = pair.source.viewpoint is not None and pair.target.viewpoint is not None
    clouds = [Thinned.prepare(c, voxel, oriented=oriented) for c in (pair.source, pair.target)]

    fpfh, fpfh_seconds = timed(lambda: [c.description.fpfh for c in clouds])
    signatures, signatures_seconds = timed(lambda: [c.description.signatures for c in clouds])
    learned, learned_seconds = timed(lambda: [network(histograms(*x)) for x in zip(fpfh, signatures, strict=True)])
    axes = clouds[1].description.axes
    described = {"fpfh": fpfh, "signatures": [x @ axes for x in signatures], "learned": learned}
    found = {name: timed(lambda rows=rows: nearest(*rows)) for name, rows in described.items()}
    truth = torch.from_numpy(localize(pair.pose, pair.source, pair.target))
    counts = {}
    for name, members in SETS.items():
        pairs = torch.unique(torch.cat([found[m][0] for m in members]), dim=0)
        p, q = (c.coarse.points[rows] for c, rows in zip(clouds, pairs.T, strict=True))
        search = GlobalSearch(*clouds, p, q)
        candidates, seconds = timed(search.candidates)
        seconds += sum(found[m][1] for m in members)
        seconds += fpfh_seconds * (name != "signatures") + signatures_seconds * (name != "FPFH")
        seconds += learned_seconds * ("learned" in members)
        distances = (p.double() @ truth[:3, :3].T + truth[:3, 3] - q).norm(dim=1)
        right = [pair.right(globalize(pose.numpy(), pair.source, pair.target)) for pose in candidates.poses]
        one, two = (float((distances < k * voxel).sum()) for k in (1, 2))
        ratio = two / max(len(pairs), 1)
        counts[name] = Counts(len(pairs), one, two, ratio, ratio > MATCHED, any(right), right[0], seconds)
    return counts


def table(rows: list[dict[str, Counts]]) -> str:
    lines = [
        "| descriptors | matches | true, 1 voxel | 2 voxels | inlier ratio [%] | FMR [%] | among candidates [%] "
        "| chosen right [%] | s a pair |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in SETS:
        m = Counts(*np.mean([row[name] for row in rows], axis=0))
        shares = " | ".join(f"{100 * x:.1f}" for x in (m.ratio, m.above, m.contained, m.chosen))
        lines.append(
            f"| {name} | {m.matches:.0f} | {m.within_one:.1f} | {m.within_two:.1f} | {shares} | {m.seconds:.2f} |"
        )
    return "\n".join(lines)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=60, help="of each benchmark in the file, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pairs")
    parser.add_argument("--viewpoints", action="store_true", help="the sensor stood at each cloud's origin")
    parser.add_argument("--weights", type=Path, help="a folder that train_descriptors.py wrote; default: the shipped")
    parser.add_argument("--allow-outside", action="store_true", help="let the paths of PAIRS.csv leave its folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(1)
    name = file_name(oriented=options.viewpoints)
    network = read(options.weights / name) if options.weights else shipped(oriented=options.viewpoints)
    for name, pairs in known_pairs(options):
        rows = [compared(pair, network) for pair in tqdm(pairs, desc=name, unit="pair")]
        print(f"\n{name}: {len(rows)} pairs, seed {options.seed}, viewpoints {options.viewpoints}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
