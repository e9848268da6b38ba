"""Four outdoor scenes of ETH's laser registration data sets: fetch, check, and prepare the file for `tools/`.

    python datasets/eth.py --output eth.npz --download FOLDER      # fetches ETH.rar, which then has to be unpacked
    python datasets/eth.py --output eth.npz --archive ETH          # the unpacked folder, or a zip archive of it

Scans: Hokuyo_N.ply of gazebo_summer, gazebo_winter, wood_autmn (so spelt) and wood_summer (Pomerleau et al., IJRR 2012)
as 3DSmoothNet's authors offer them (Gojcic et al., CVPR 2019), in the scanner's frame. Truth: SCENE/gt.log (T maps scan
j into i), the pairs that overlap by more than 30%, 713 of them; overlaps from SCENE/overlapMatrix.csv where it is (a
square table of numbers, row i and column j). Python cannot read RAR archives: `unrar x ETH.rar` or `bsdtar -xf ETH.rar`
can. No SHA-256 of the archive is on record: the computed one is printed, and the pairs are counted.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _fetch import Tree, add_archive_options, obtain
from _fragments import Cloud, check_rigid, read_blocks, save_fragments
from tqdm import tqdm

from dlc_reg.errors import InputError
from dlc_reg.io import read

URL = "https://share.phys.ethz.ch/~gsg/3DSmoothNet/data/ETH.rar"
COUNTS = {"gazebo_summer": 184, "gazebo_winter": 289, "wood_autmn": 115, "wood_summer": 125}  # pairs
SCALE = 1e-4  # metres
LIMIT = 1 << 30
SCAN = re.compile(rf"(?:^|/)({'|'.join(COUNTS)})/Hokuyo_(\d+)\.ply$")


def read_scan(tree: Tree, name: str) -> np.ndarray:
    """(N, 3), metres, in the scanner's frame."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.ply"
        path.write_bytes(tree.read(name, LIMIT))
        try:
            return read(path).points
        except InputError as error:
            raise SystemExit(f"{name}: {error.given}") from None


def read_truth(tree: Tree, scene: str) -> dict[tuple[int, int], np.ndarray]:
    """{(i, j): T mapping j into i}."""
    name = f"{scene}/gt.log"
    poses = read_blocks(tree.read(tree.find(name)).decode(), 4, name)
    for (i, j), pose in poses.items():
        check_rigid(pose, f"{name}: the matrix of pair {i} {j}")
    return poses


def read_overlaps(tree: Tree, scene: str) -> np.ndarray | None:
    """(N, N), rows i and columns j; None if the file is not there."""
    name = f"{scene}/overlapMatrix.csv"
    if not any(path == name or path.endswith("/" + name) for path in tree.names):
        return None
    try:
        lines = tree.read(tree.find(name)).decode().split("\n")
        table = np.array([[float(cell) for cell in line.split(",")] for line in lines if line.strip()])
    except (ValueError, UnicodeDecodeError):  # ragged too
        table = np.zeros((0, 1))
    if table.ndim != 2 or table.shape[0] != table.shape[1]:
        raise SystemExit(f"{name}: not a square table of numbers")
    return table


def overlap_of(table: np.ndarray | None, i: int, j: int) -> float:
    return float(table[i, j]) if table is not None and max(i, j) < len(table) else np.nan


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--incomplete", action="store_true", help="write whatever scenes are there")
    add_archive_options(parser)
    options = parser.parse_args(arguments)
    path = obtain(options, URL)
    if path.is_file() and path.open("rb").read(4) == b"Rar!":
        raise SystemExit(f"{path}: unpack it (unrar x, or bsdtar -xf), then give its folder as --archive")
    tree = Tree(path)
    files = {(m[1], int(m[2])): m.string for m in map(SCAN.search, tree.names) if m}
    if not files:
        raise SystemExit(f"{tree.path}: no {next(iter(COUNTS))}/Hokuyo_N.ply or the like in it")
    index = {name: k for k, name in enumerate(sorted(files))}
    pairs, truths, overlaps = [], [], []
    for scene in sorted({scene for scene, _ in files}):
        table = read_overlaps(tree, scene)
        for (i, j), pose in read_truth(tree, scene).items():
            if (scene, i) not in index or (scene, j) not in index:
                raise SystemExit(f"{scene}/gt.log: the scans of pair {i} {j} are not there")
            pairs.append((index[scene, i], index[scene, j]))
            truths.append(pose)
            overlaps.append(overlap_of(table, i, j))
    names = sorted(files)
    found = {scene: sum(names[i][0] == scene for i, _ in pairs) for scene in COUNTS}
    if found != COUNTS and not options.incomplete:
        raise SystemExit(f"found {found} pairs, expected {COUNTS}: not the benchmark (--incomplete to go on)")
    arrays = {"eth_pairs": np.array(pairs, np.int32), "eth_T": np.array(truths)}
    if not np.isnan(overlaps).all():
        arrays["eth_overlap"] = np.array(overlaps, np.float32)

    def clouds() -> Iterator[Cloud]:
        for scene, number in tqdm(names, unit="scan"):
            yield Cloud(scene, number, read_scan(tree, files[scene, number]))

    save_fragments(options.output, clouds(), scale=SCALE, compress=False, arrays=arrays)
    print(f"{options.output}: {len(names)} scans, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
