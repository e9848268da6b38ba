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
from pathlib import Path
from typing import Any

import numpy as np
from _fetch import Tree, add_archive_options, obtain
from _unpickle import load, load_saved
from tqdm import tqdm

from dlc_reg import ops
from dlc_reg.io import read, replacing

URLS = {
    "thinned": "https://share.phys.ethz.ch/~gsg/Predator/data.zip",
    "dense": "https://share.phys.ethz.ch/~gsg/pairwise_reg/3dmatch.zip",
}
BENCHMARKS = {"3dmatch": "3DMatch", "3dlomatch": "3DLoMatch"}
COUNTS = {"scenes": 8, "fragments": 433, "3dmatch": 1623, "3dlomatch": 1781}
VOXEL = 0.025  # metres
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


def read_fragments(tree: Tree) -> dict[str, Any]:
    """All fragments in one array of integers, by scene and number."""
    matches = [m for m in map(FRAGMENT.search, tree.names) if m]
    found = sorted((m[1], int(m[2]), m.string) for m in matches)
    if not found:
        raise SystemExit(f"{tree.path}: no test/SCENE/cloud_bin_N.pth or .ply in it")
    clouds = [read_fragment(tree, name) for _, _, name in tqdm(found, unit="fragment")]
    scale = float(max(np.abs(cloud).max() for cloud in clouds)) / 32767
    return {
        "points_q": np.concatenate([np.round(cloud / scale).astype(np.int16) for cloud in clouds]),
        "scale": np.float64(scale),
        "offsets": np.cumsum([0, *map(len, clouds)]),
        "scene": np.array([scene for scene, _, _ in found]),
        "fragment": np.array([number for _, number, _ in found], np.int16),
    }


def read_blocks(text: str, size: int, name: str) -> dict[tuple[int, int], np.ndarray]:
    """{(i, j): matrix} of a gt.log (size 4) or gt.info (size 6): a line `i j n`, then the rows of the matrix."""
    try:
        values = np.array(text.split(), float).reshape(-1, 3 + size * size)
    except ValueError:
        raise SystemExit(f"{name}: not lines of `i j n` with a {size}x{size} matrix each") from None
    return {(int(v[0]), int(v[1])): v[3:].reshape(size, size) for v in values}


def read_truth(tree: Tree, fragments: dict[str, Any], benchmark: str) -> dict[str, np.ndarray]:
    """pairs (K, 2) of fragments (i, j), T (K, 4, 4) mapping j into i, info (K, 6, 6), and overlap (K,) if known."""
    folder = BENCHMARKS[benchmark]
    names = list(zip(fragments["scene"].tolist(), fragments["fragment"].tolist(), strict=True))
    index = {name: k for k, name in enumerate(names)}
    rows: list[tuple[tuple[int, int], np.ndarray, np.ndarray]] = []
    for scene in sorted(set(fragments["scene"].tolist())):
        log, info = (f"{folder}/{scene}/gt.{kind}" for kind in ("log", "info"))
        poses = read_blocks(tree.read(tree.find(log)).decode(), 4, log)
        weights = read_blocks(tree.read(tree.find(info)).decode(), 6, info)
        for (i, j), pose in poses.items():
            if (i, j) not in weights or (scene, i) not in index or (scene, j) not in index:
                raise SystemExit(f"{log}: pair {i} {j} has no information matrix, or its fragments are not there")
            if np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-3:
                raise SystemExit(f"{log}: the matrix of pair {i} {j} is no rigid motion")
            rows.append(((index[scene, i], index[scene, j]), pose, weights[i, j]))
    pairs, poses_of, weights_of = (np.array(column) for column in zip(*rows, strict=True))
    found = {"pairs": pairs.astype(np.int16), "T": poses_of, "info": weights_of}
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


def verify(arrays: dict[str, Any]) -> None:
    found = {"scenes": len(set(arrays["scene"].tolist())), "fragments": len(arrays["scene"])}
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
    truth = Tree(options.truth)
    arrays = read_fragments(Tree(obtain(options, URLS[options.variant])))
    for benchmark in BENCHMARKS:
        arrays |= {f"{benchmark}_{key}": value for key, value in read_truth(truth, arrays, benchmark).items()}
    if not options.incomplete:
        verify(arrays)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.output, overwrite=True) as draft:
        np.savez_compressed(draft, **arrays)
    pairs = ", ".join(f"{len(arrays[f'{b}_pairs'])} pairs of {BENCHMARKS[b]}" for b in BENCHMARKS)
    print(f"{options.output}: {len(arrays['scene'])} fragments, {pairs}")


if __name__ == "__main__":
    main()
