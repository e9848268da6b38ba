"""ModelNet40 as point samples: fetch, check, and prepare the file that `dlc_reg.protocols.Shapes.load` reads.

    python datasets/modelnet40.py --output modelnet40.npz                    # 1.6 GB of text, 10,000 points a shape
    python datasets/modelnet40.py --output modelnet40.npz --variant hdf5     # 0.4 GB, the 2,048 points of the papers
    python datasets/modelnet40.py --output modelnet40.npz --archive modelnet40_normal_resampled.zip --sha256 HEX
    python datasets/modelnet40.py --output airplane.npz --from-npz modelnet40_airplane_2048.npz

The archives are PointNet's and PointNet++'s (Qi et al., CVPR and NeurIPS 2017). DCP, PRNet, RPM-Net and Predator use
the "hdf5" one (it needs h5py); the "resampled" one has the same shapes with 10,000 points, of which the first --points
are kept. No SHA-256 of either archive is on record: the computed one is printed, and what is inside is counted. Of
"hdf5" the files' MD5 sums, as other projects have recorded them, are checked. The shapes are those of Princeton's
ModelNet, for academic use.
"""

from __future__ import annotations

import argparse
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from _fetch import Tree, add_archive_options, obtain
from _shapes import save
from tqdm import tqdm

URLS = {
    "resampled": "https://shapenet.cs.stanford.edu/media/modelnet40_normal_resampled.zip",
    "hdf5": "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
}
COUNTS = {"resampled": {"train": 9843, "test": 2468}, "hdf5": {"train": 9840, "test": 2468}}  # hdf5 lacks three
MD5 = {
    "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
    "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
    "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
    "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
    "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
    "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
    "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
}
Columns = dict[str, Any]


def read_resampled(tree: Tree, points: int) -> Columns:
    """The first `points` of every shape that the official lists name."""
    lists = {split: tree.read(tree.find(f"modelnet40_{split}.txt")).decode().split() for split in ("train", "test")}
    verify_counts({split: len(names) for split, names in lists.items()}, COUNTS["resampled"])
    root = tree.find("modelnet40_train.txt").removesuffix("modelnet40_train.txt")
    rows = [(split, name, name.rsplit("_", 1)[0]) for split, names in lists.items() for name in names]
    both = np.empty((len(rows), points, 6), np.float32)
    for target, (_, name, category) in zip(both, tqdm(rows, unit="shape"), strict=True):
        target[:] = parse(tree.read(f"{root}{category}/{name}.txt", 4 << 20), points, name)
    split, name, category = (np.array(column) for column in zip(*rows, strict=True))
    points_of, normals = both[..., :3], both[..., 3:].astype(np.float16)
    return {"points": points_of, "normals": normals, "category": category, "name": name, "split": split}


def parse(text: bytes, points: int, name: str) -> np.ndarray:
    """(points, 6) of a file with `x,y,z,nx,ny,nz` a line."""
    lines = text.split(b"\n", points)[:points]
    try:
        return np.array(b",".join(lines).rstrip(b",").split(b","), np.float32).reshape(points, 6)
    except ValueError:
        raise SystemExit(f"{name}: not {points} lines of six numbers") from None


def read_hdf5(tree: Tree, points: int) -> Columns:
    """The points in their order, the official split; names are made of the file and the row."""
    try:
        import h5py
    except ImportError:
        raise SystemExit("the hdf5 variant needs h5py: pip install h5py") from None
    labels = tree.read(tree.find("shape_names.txt")).decode().split()
    columns: dict[str, list[Any]] = {key: [] for key in ("points", "normals", "category", "name", "split")}
    for file, digest in MD5.items():
        data = tree.read(tree.find(file), 256 << 20)
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != digest:
            raise SystemExit(f"{file}: MD5 is {found}, expected {digest}: not the file it should be")
        split = "train" if "train" in file else "test"
        with h5py.File(io.BytesIO(data)) as h5:
            columns["points"].append(h5["data"][:, :points].astype(np.float32))
            columns["normals"].append(h5["normal"][:, :points].astype(np.float16))
            rows = h5["label"][:].ravel()
        columns["category"].append(np.array(labels)[rows])
        columns["name"].append(
            np.array([f"{Path(file).stem.removeprefix('ply_data_')}_{i:04d}" for i in range(len(rows))])
        )
        columns["split"].append(np.full(len(rows), split))
    joined = {key: np.concatenate(parts) for key, parts in columns.items()}
    verify_counts({split: int((joined["split"] == split).sum()) for split in ("train", "test")}, COUNTS["hdf5"])
    return joined


def read_npz(path: Path) -> Columns:
    """A file with train_points, train_normals (int8, times 127), train_id and the same of test; ids end in a number."""
    with np.load(path, allow_pickle=False) as data:
        columns = {
            key: np.concatenate([data[f"train_{key}"], data[f"test_{key}"]]) for key in ("points", "normals", "id")
        }
        split = np.repeat(["train", "test"], [len(data["train_id"]), len(data["test_id"])])
    names = columns.pop("id")
    return {**columns, "name": names, "category": np.array([n.rsplit("_", 1)[0] for n in names]), "split": split}


def verify_counts(found: dict[str, int], expected: dict[str, int]) -> None:
    if found != expected:
        raise SystemExit(f"found {found} shapes, expected {expected}: not the official set")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variant", choices=sorted(URLS), default="resampled")
    parser.add_argument("--points", type=int, default=2048, help="of each shape")
    parser.add_argument("--from-npz", type=Path, help="convert such a file instead")
    add_archive_options(parser)
    options = parser.parse_args(arguments)
    if options.from_npz is not None:
        save(options.output, **read_npz(options.from_npz))
        return
    tree = Tree(obtain(options, URLS[options.variant]))
    columns = (read_hdf5 if options.variant == "hdf5" else read_resampled)(tree, options.points)
    if len(set(columns["category"])) != 40:
        raise SystemExit(f"{len(set(columns['category']))} categories, expected 40: not the official set")
    save(options.output, **columns)


if __name__ == "__main__":
    main()
