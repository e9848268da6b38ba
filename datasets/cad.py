"""A set of CAD shapes whose terms let weights be shipped: furniture, electronic parts and procedural objects.

    apt-get download sweethome3d-furniture kicad-packages3d && pip download --no-deps pybullet   # 600 MB, in a folder
    python datasets/cad.py --packages FOLDER --output cad.npz           # minutes; whichever of the three are there
    python datasets/cad.py --from-npz cad_2048.npz --output cad.npz     # converts a set made before
    python datasets/cad.py --from-npz cad.npz --without CC-BY-SA-4.0 --output shipped.npz      # what weights ship from

Sweet Home 3D's furniture (CC0, CC-BY-3.0; OBJ in zip archives), at most --per-category parts a category of KiCad's
packages3d (CC-BY-SA-4.0 with an exception; those under the GPL are left out; VRML) and the 1,000 objects of pybullet's
random_urdfs (OBJ in the wheel). Each row keeps its source and its licence, from Debian's copyright files. Points are
spread evenly over the area, normals are the triangles'. Shapes of one family (same source, category and name up to its
first digit; a random object is one by itself) lie in one split, about one family in ten in "val". Needs dpkg-deb.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import numpy as np
from _debian import deb_files, licence_of, licences
from _shapes import normals_to_int8, save, to_unit_sphere
from tqdm import tqdm

from dlc_reg._formats import Surface
from dlc_reg.io import sample_surface

LIMIT = 256 << 20  # bytes of one model
WANTED = ("/copyright", ".sh3f", ".wrl")


@dataclass(frozen=True)
class Row:
    data: bytes  # OBJ or VRML
    source: str
    category: str
    name: str
    licence: str
    about: dict[str, str] = field(default_factory=dict)  # what furniture's catalogue says besides


def digest(*text: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(text).encode()).digest()[:8], "big")


def split_of(row: Row) -> str:
    family = row.name if row.category == "random" else re.split(r"\d", row.name, maxsplit=1)[0]
    return "val" if digest(row.source, row.category, family) % 10 == 0 else "train"


def furniture(package: Path) -> Iterator[Row]:
    """The models that the catalogues of Sweet Home 3D's *.sh3f archives list."""
    patterns: list[tuple[str, str]] = []
    for path, data in deb_files(package, WANTED):
        if path.endswith("/copyright"):  # the documentation comes first
            patterns = licences(data.decode())
        if not path.endswith(".sh3f"):
            continue
        library = PurePosixPath(path).stem
        with ZipFile(io.BytesIO(data)) as archive:
            entries: dict[str, dict[str, str]] = {}
            catalogue = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
            for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", catalogue, re.M):
                entries.setdefault(number, {})[key] = value.strip()
            models: dict[str, dict[str, str]] = {}  # each once, under its first entry
            for entry in (e for e in entries.values() if {"name", "category", "model"} <= e.keys()):
                models.setdefault(entry["model"].lstrip("/"), entry)
            for model, entry in models.items():
                if model.endswith(".obj") and archive.getinfo(model).file_size <= LIMIT:
                    licence = licence_of(f"{library}/{model}", patterns)
                    source = f"sh3d-{library}"
                    yield Row(archive.read(model), source, entry["category"], entry["name"], licence, entry)


def parts(package: Path, per_category: int) -> Iterator[Row]:
    """Of each category of KiCad's packages3d the parts with the smallest digests: a choice that knows no order."""
    patterns: list[tuple[str, str]] = []
    chosen: dict[str, dict[int, Row]] = {}
    for path, data in tqdm(deb_files(package, WANTED), desc=package.name, unit="file"):
        if path.endswith("/copyright"):
            patterns = licences(data.decode())
        licence = licence_of("/".join(PurePosixPath(path).parts[-2:]), patterns)
        if not path.endswith(".wrl") or licence.startswith("GPL"):
            continue
        category, name = PurePosixPath(path).parent.name.removesuffix(".3dshapes"), PurePosixPath(path).stem
        heap = chosen.setdefault(category, {})
        heap[digest(name)] = Row(data, "kicad-packages3d", category, name, licence)
        if len(heap) > per_category:
            del heap[max(heap)]
    for _, heap in sorted(chosen.items()):
        yield from heap.values()


def procedural(wheel: Path) -> Iterator[Row]:
    with ZipFile(wheel) as archive:
        for name in archive.namelist():
            if "/random_urdfs/" in name and name.endswith(".obj"):
                stem = PurePosixPath(name).stem
                yield Row(archive.read(name), "pybullet-random_urdfs", "random", stem, "see pybullet (zlib)")


def read_vrml(text: str) -> Surface:
    """All IndexedFaceSets of a VRML 2 file without transforms."""
    if re.search(r"\bTransform\b", text):
        raise ValueError("has a Transform")
    lists = [re.findall(rf"\b{key}\s*\[([^\]]*)\]", text) for key in ("point", "coordIndex")]
    points = [np.array(body.replace(",", " ").split(), float).reshape(-1, 3) for body in lists[0]]
    faces = [np.array(body.replace(",", " ").split(), np.int64) for body in lists[1]]
    if not points or len(points) != len(faces):
        raise ValueError(f"{len(points)} sets of points, {len(faces)} of faces")
    starts = np.cumsum([0, *map(len, points)])
    return Surface(
        np.concatenate(points), np.concatenate([fan(f) + s for f, s in zip(faces, starts[:-1], strict=True)])
    )


def fan(indices: np.ndarray) -> np.ndarray:
    """Triangles (F, 3) of polygons that end with -1."""
    if len(indices) % 4 == 0 and (indices[3::4] == -1).all() and (np.delete(indices, np.s_[3::4]) >= 0).all():
        return indices.reshape(-1, 4)[:, :3]
    polygons = np.split(indices, np.flatnonzero(indices < 0))
    triangles = [(p[0], p[i], p[i + 1]) for p in (q[q >= 0] for q in polygons) for i in range(1, len(p) - 1)]
    return np.array(triangles, np.int64).reshape(-1, 3)


def read_obj(data: bytes) -> Surface:
    import trimesh

    mesh = trimesh.load(io.BytesIO(data), file_type="obj", force="mesh", process=False, skip_materials=True)
    return Surface(np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64))


def sample(row: Row, points: int) -> tuple[np.ndarray, np.ndarray]:
    surface = read_vrml(row.data.decode("latin-1")) if row.source.startswith("kicad") else read_obj(row.data)
    cloud = sample_surface(surface, points, seed=digest(row.source, row.category, row.name) % 2**32)
    return to_unit_sphere(cloud.points).astype(np.float16), normals_to_int8(cloud.normals)


def build(folder: Path, points: int, per_category: int) -> dict[str, np.ndarray]:
    sources = {
        "sweethome3d-furniture_*.deb": furniture,
        "kicad-packages3d_*.deb": lambda package: parts(package, per_category),
        "pybullet-*.whl": procedural,
    }
    rows, clouds = [], []
    for pattern, reader in sources.items():
        for package in sorted(folder.glob(pattern))[-1:]:
            for row in tqdm(reader(package), desc=pattern.split("_")[0], unit="shape"):
                try:
                    clouds.append(sample(row, points))
                    rows.append(replace(row, data=b""))
                except (ValueError, IndexError, KeyError) as error:
                    tqdm.write(f"left out: {row.source} {row.category} {row.name} ({error})")
    if not rows:
        raise SystemExit(f"{folder}: none of {', '.join(sources)}")
    columns = {key: np.array([getattr(row, key) for row in rows]) for key in ("source", "category", "name", "licence")}
    sampled, normals = (np.stack(column) for column in zip(*clouds, strict=True))
    return {**columns, "split": np.array([split_of(row) for row in rows]), "points": sampled, "normals": normals}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--packages", type=Path, help="a folder with the two .deb files and the wheel, or some of them")
    given.add_argument("--from-npz", type=Path)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--per-category", type=int, default=14, help="parts of KiCad a category")
    parser.add_argument("--without", action="append", default=[], metavar="LICENCE", help="leave such rows out")
    options = parser.parse_args(arguments)
    if options.from_npz is not None:
        with np.load(options.from_npz, allow_pickle=False) as data:
            columns = {key: data[key] for key in data.files}
    else:
        columns = build(options.packages, options.points, options.per_category)
    kept = ~np.isin(columns["licence"], options.without)
    save(options.output, **{key: column[kept] for key, column in columns.items()})


if __name__ == "__main__":
    main()
