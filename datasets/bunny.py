"""The Stanford bunny's range scans: fetch, check, and prepare the pair in `samples/bunny/`.

    python datasets/bunny.py [--scans FOLDER] [--output datasets/samples/bunny]

Without --scans the archive is fetched from the Stanford 3D Scanning Repository (4.9 MB). FOLDER is its `bunny/data`:
the scans as ASCII PLY (metres) and, for the truth, `bun.conf`. Only the vertices are kept, bit for bit as float32.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from _fetch import check, fetch

from dlc_reg.io import read, write

URL = "http://graphics.stanford.edu/pub/3Dscanrep/bunny.tar.gz"
SCANS = {
    "bun000": "688d6b5ef4f8aebaeed9af9ed1605b6f4985a8e845ff5c015924f9b1d13f4b05",
    "bun045": "ac61fef9a82c1a963fb33167209dbee5507cccddefed7b6c516c6c4cbd64eb2f",
}


def unpack(folder: Path) -> Path:
    """Fetches the archive, unpacks it into `folder` and returns the scans' folder."""
    with tarfile.open(fetch(URL, folder / "bunny.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / "bunny" / "data"


def read_poses(conf: str) -> dict[str, np.ndarray]:
    """T_world_scan (4x4) of each scan named in a bun.conf: `bmesh FILE tx ty tz qx qy qz qw`.

    Stanford's quaternions turn the world into the scan, so the rotation of the usual formula is transposed.
    """
    poses = {}
    for words in (line.split() for line in conf.splitlines()):
        if words and words[0] == "bmesh":
            values = np.array(words[2:9], float)
            x, y, z, w = values[3:] / np.linalg.norm(values[3:])
            pose = np.eye(4)
            pose[:3, 3] = values[:3]
            pose[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)],
                [2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)],
                [2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)],
            ]
            poses[Path(words[1]).stem] = pose
    return poses


def prepare(scans: Path, output: Path) -> None:
    """Checks both scans, writes them as binary PLY, and writes their true transform where bun.conf is there."""
    output.mkdir(parents=True, exist_ok=True)
    for name, digest in SCANS.items():
        check(scans / f"{name}.ply", digest)
        write(output / f"{name}.ply", read(scans / f"{name}.ply").points.astype(np.float32), overwrite=True)
    if (scans / "bun.conf").exists():
        poses = read_poses((scans / "bun.conf").read_text())
        transform = np.linalg.inv(poses["bun000"]) @ poses["bun045"]
        truth = {"source": "bun045.ply", "target": "bun000.ply", "unit": "m", "T_target_source": transform.tolist()}
        (output / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "samples" / "bunny")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(options.scans or unpack(Path(folder)), options.output)


if __name__ == "__main__":
    main()
