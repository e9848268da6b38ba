"""The prepared format of scenes: clouds with the true poses of pairs of them, in one `.npz` file.

`points_q` (P, 3), integers; times `scale` they are metres in the sensor's frame, where it stood at the origin.
`offsets` (F + 1,): cloud k is rows offsets[k] to offsets[k + 1]. `scene` (F,), text, and `fragment` (F,), the cloud's
number within its scene. For each benchmark B in the file ("3dmatch", "3dlomatch", "kitti", "eth", "rooms"): `B_pairs`
(K, 2) of clouds (i, j), `B_T` (K, 4, 4), which maps j into i; if known `B_info` (K, 6, 6), Redwood's information matrix
of gt.info, and `B_overlap` (K,). Other columns may be there. The scripts in `datasets/` write it.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.io import read_columns

BENCHMARKS = ("3dmatch", "3dlomatch", "kitti", "eth", "rooms")
MAKER = "datasets/threedmatch.py, kitti.py, eth.py or rooms.py"
CLOUDS = ("scale", "offsets", "scene", "fragment")


@dataclass(frozen=True)
class Task:
    """Clouds to register, with the answer, or None where they show different scenes."""

    source: int
    target: int
    T_target_source: NDArray[np.float64] | None = None
    information: NDArray[np.float64] | None = None


class Fragments:
    """A prepared file. Raises InputError for another one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        optional = [f"{b}_{what}" for b in BENCHMARKS for what in ("pairs", "T", "info", "overlap")]
        self.data = read_columns(path, CLOUDS, MAKER, optional=optional)
        self.points = _points(self.path)
        self.benchmarks = [b for b in BENCHMARKS if f"{b}_pairs" in self.data]
        self._check()

    def _check(self) -> None:
        offsets, count = self.data["offsets"], len(self.data["scene"])
        for name, wrong in {
            "points_q": self.points.ndim != 2 or self.points.shape[1] != 3 or self.points.dtype.kind not in "iu",
            "offsets": offsets.shape != (count + 1,) or offsets[0] != 0 or (np.diff(offsets) < 0).any()
            or offsets[-1] != len(self.points),
            "fragment": self.data["fragment"].shape != (count,),
        }.items():  # fmt: skip
            if wrong:
                raise InputError("path", f"{self.path}, whose {name} does not fit", f"a file that {MAKER} prepared")
        for b in self.benchmarks:
            pairs, poses = self.data[f"{b}_pairs"], self.data.get(f"{b}_T")
            fits = pairs.ndim == 2 and pairs.shape[1] == 2 and poses is not None and poses.shape == (len(pairs), 4, 4)
            if not fits or (len(pairs) and not 0 <= pairs.min() <= pairs.max() < count):
                raise InputError("path", f"{self.path}, whose {b}_pairs do not fit", f"a file that {MAKER} prepared")

    def checksum(self) -> str:
        """SHA-256 of the file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                digest.update(chunk)
        return digest.hexdigest()

    def scene(self, i: int) -> str:
        return str(self.data["scene"][i])

    def number(self, i: int) -> int:
        """Within its scene."""
        return int(self.data["fragment"][i])

    def points_of(self, i: int) -> NDArray[np.float64]:
        """(N, 3), metres, in the sensor's frame."""
        begin, end = self.data["offsets"][i : i + 2]
        metres: NDArray[np.float64] = self.points[begin:end].astype(np.float64) * float(self.data["scale"])
        return metres

    def cloud(self, i: int, *, viewpoint: bool) -> PointCloud:
        """The sensor stood at the origin, which the cloud knows if `viewpoint`."""
        return PointCloud.from_any(self.points_of(i), viewpoint=(0, 0, 0) if viewpoint else None)

    def consecutive(self, task: Task) -> bool:
        """Whether the source is the fragment recorded next after the target: Redwood's recall leaves such pairs out."""
        return self.number(task.source) == self.number(task.target) + 1

    def pairs(self, benchmark: str, count: int | None, rng: np.random.Generator) -> Iterator[Task]:
        """`count` pairs that overlap, drawn without repetition; None is all of them."""
        if benchmark not in self.benchmarks:
            expected = f"one of {', '.join(self.benchmarks)}, which this file has"
            raise InputError("benchmark", f"{benchmark!r}, of which {self.path} has no pairs", expected)
        pairs, poses = self.data[f"{benchmark}_pairs"], self.data[f"{benchmark}_T"]
        information = self.data.get(f"{benchmark}_info")
        for row in rng.permutation(len(pairs))[:count]:
            i, j = pairs[row]
            yield Task(int(j), int(i), poses[row], None if information is None else information[row])

    def strangers(self, count: int, rng: np.random.Generator) -> Iterator[Task]:
        """`count` pairs of fragments of different scenes."""
        while count:
            i, j = rng.integers(len(self.data["scene"]), size=2)
            if self.scene(i) != self.scene(j):
                count -= 1
                yield Task(int(i), int(j))


def _points(path: Path) -> NDArray[Any]:
    """`points_q` of the file; left on the disk where it is not compressed."""
    with zipfile.ZipFile(path) as archive:
        entry = next((e for e in archive.infolist() if e.filename == "points_q.npy"), None)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            found: NDArray[Any] = read_columns(path, ("points_q",), MAKER)["points_q"]
            return found
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(file)
            begins = file.tell()
    if fortran or kind.hasobject:
        raise InputError("path", f"{path}, whose points_q is {kind}", f"a file that {MAKER} prepared")
    with path.open("rb") as raw:
        raw.seek(entry.header_offset + 26)  # the local header's own lengths: they may differ from the directory's
        name, extra = np.frombuffer(raw.read(4), "<u2")
    return np.memmap(path, kind, "r", entry.header_offset + 30 + int(name) + int(extra) + begins, shape)
