"""The test fragments of 3DMatch and 3DLoMatch: fetch, check, and prepare the file that `tools/` evaluate on.

    git clone --depth 1 https://github.com/prs-eth/OverlapPredator     # the true poses, in its folder configs
    python datasets/threedmatch.py --truth OverlapPredator/configs --output 3dmatch.npz
    python datasets/threedmatch.py --truth OverlapPredator/configs --output 3dmatch.npz --archive data.zip --sha256 HEX

Fragments: 3DMatch (Zeng et al., CVPR 2017), 8 scenes, 433 of them, as Predator's authors (Huang et al., CVPR 2021)
offer them: "thinned" to voxels of 2.5 cm (torch.save files), or --variant dense (5 GB of PLY), which is thinned here.
Truth: their benchmarks/{3DMatch,3DLoMatch}/SCENE/gt.log (T maps fragment j into i) and gt.info (Redwood's 6x6), and the
overlaps of 3DMatch.pkl and 3DLoMatch.pkl where they are found. No SHA-256 of the archives is on record: the computed
one is printed, and what is inside is counted. Pickles are read by `_unpickle`, which runs nothing of theirs. For
research use (7-Scenes, SUN3D and others).
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _fetch import Tree, add_archive_options, obtain
from _fragments import Cloud, check_rigid, read_blocks, save_fragments
from _unpickle import load, load_saved
from tqdm import tqdm

from dlc_reg import ops
from dlc_reg.io import read

URLS = {
    "thinned": "https://share.phys.ethz.ch/~gsg/Predator/data.zip",
    "dense": "https://share.phys.ethz.ch/~gsg/pairwise_reg/3dmatch.zip",
}
BENCHMARKS = {"3dmatch": "3DMatch", "3dlomatch": "3DLoMatch"}
COUNTS = {"scenes": 8, "fragments": 433, "3dmatch": 1623, "3dlomatch": 1781}
VOXEL, SCALE = 0.025, 1e-4  # metres
LIMIT = 1 << 30
FRAGMENT = re.compile(r"(?:^|/)test/([^/]+)/(?:fragments/)?cloud_bin_(\d+)\.(pth|ply)$")


def read_fragment(tree: Tree, name: str) -> np.ndarray:
    """(N, 3) float32, metres, in the sensor's frame."""
    data = tree.read(name, LIMIT)
    if name.endswith(".pth"):
        points = np.asarray(load_saved(data, name))
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fragment.ply"
            path.write_bytes(data)
            points = ops.voxel_downsample(read(path).points.astype(np.float32), VOXEL)
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind != "f" or not np.isfinite(points).all():
        raise SystemExit(f"{name}: {points.dtype} {points.shape}, expected finite points (N, 3)")
    return points.astype(np.float32)


def find_fragments(tree: Tree) -> list[tuple[str, int, str]]:
    """Scene, number and file of every test fragment, sorted."""
    matches = [m for m in map(FRAGMENT.search, tree.names) if m]
    if not matches:
        raise SystemExit(f"{tree.path}: no test/SCENE/cloud_bin_N.pth or .ply in it")
    return sorted((m[1], int(m[2]), m.string) for m in matches)


def read_fragments(tree: Tree, found: list[tuple[str, int, str]]) -> Iterator[Cloud]:
    for scene, number, file in tqdm(found, unit="fragment"):
        yield Cloud(scene, number, read_fragment(tree, file))


def read_truth(tree: Tree, names: list[tuple[str, int]], benchmark: str) -> dict[str, np.ndarray]:
    """pairs (K, 2) of (i, j), T (K, 4, 4) mapping j into i, info (K, 6, 6), and overlap (K,) if known.

    `names`: the scene and the number of each fragment.
    """
    folder = BENCHMARKS[benchmark]
    index = {name: k for k, name in enumerate(names)}
    rows: list[tuple[tuple[int, int], np.ndarray, np.ndarray]] = []
    for scene in sorted({scene for scene, _ in names}):
        log, info = (f"{folder}/{scene}/gt.{kind}" for kind in ("log", "info"))
        poses = read_blocks(tree.read(tree.find(log)).decode(), 4, log)
        weights = read_blocks(tree.read(tree.find(info)).decode(), 6, info)
        for (i, j), pose in poses.items():
            if (i, j) not in weights or (scene, i) not in index or (scene, j) not in index:
                raise SystemExit(f"{log}: pair {i} {j} has no information matrix, or its fragments are not there")
            check_rigid(pose, f"{log}: the matrix of pair {i} {j}")
            rows.append(((index[scene, i], index[scene, j]), pose, weights[i, j]))
    pairs, poses_of, weights_of = (np.array(column) for column in zip(*rows, strict=True))
    found = {"pairs": pairs.astype(np.int32), "T": poses_of, "info": weights_of}
    overlaps = read_overlaps(tree, f"{folder}.pkl")
    if overlaps:
        keys = (frozenset((names[i], names[j])) for i, j in pairs)
        found["overlap"] = np.array([overlaps.get(key, np.nan) for key in keys], np.float32)
    return found


def read_overlaps(tree: Tree, name: str) -> dict[frozenset[Any], float]:
    """{the two (scene, number): overlap} of Predator's metadata; empty if the file is not there."""
    if not any(path.rsplit("/", 1)[-1] == name for path in tree.names):
        return {}
    table = load(tree.read(tree.find(name)), name)
    found = {}
    for source, target, overlap in zip(table["src"], table["tgt"], table["overlap"], strict=True):
        ends = [FRAGMENT.search(str(path)) for path in (source, target)]
        if all(ends):
            found[frozenset((m[1], int(m[2])) for m in ends if m)] = float(overlap)
    return found


def verify(names: list[tuple[str, int]], arrays: dict[str, np.ndarray]) -> None:
    found = {"scenes": len({scene for scene, _ in names}), "fragments": len(names)}
    found |= {benchmark: len(arrays[f"{benchmark}_pairs"]) for benchmark in BENCHMARKS}
    if found != COUNTS:
        raise SystemExit(f"found {found}, expected {COUNTS}: not the benchmark's test set (--incomplete to go on)")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True, help="a folder or zip archive with the gt.log files")
    parser.add_argument("--variant", choices=sorted(URLS), default="thinned")
    parser.add_argument("--incomplete", action="store_true", help="write whatever scenes are there")
    add_archive_options(parser)
    options = parser.parse_args(arguments)
    truth, tree = Tree(options.truth), Tree(obtain(options, URLS[options.variant]))
    found = find_fragments(tree)
    names = [(scene, number) for scene, number, _ in found]
    arrays: dict[str, np.ndarray] = {}
    for benchmark in BENCHMARKS:
        arrays |= {f"{benchmark}_{key}": value for key, value in read_truth(truth, names, benchmark).items()}
    if not options.incomplete:
        verify(names, arrays)
    save_fragments(options.output, read_fragments(tree, found), scale=SCALE, compress=True, arrays=arrays)
    pairs = ", ".join(f"{len(arrays[f'{b}_pairs'])} pairs of {BENCHMARKS[b]}" for b in BENCHMARKS)
    print(f"{options.output}: {len(names)} fragments, {pairs}")


if __name__ == "__main__":
    main()
