"""What the scripts in `datasets/` prepare, from small archives made here."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from dlc_reg.io import write
from dlc_reg.protocols import Shapes

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "datasets"), str(ROOT / "tools")]

import _unpickle  # noqa: E402
import bunny  # noqa: E402
import cad  # noqa: E402
import modelnet40  # noqa: E402
import threedmatch  # noqa: E402
from fragments import Fragments  # noqa: E402


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


CATEGORIES = [f"kind_{i:02d}" for i in range(39)] + ["night_stand"]


def resampled(path: Path) -> tuple[Path, np.ndarray]:
    """An archive like the official one: 40 categories, a shape each for train and test, 12 points."""
    rng = np.random.default_rng(1)
    values = (rng.random((80, 12, 6)) - 0.5).round(6)
    names = {split: [f"{c}_{i:04d}" for c in CATEGORIES] for i, split in enumerate(("train", "test"), 1)}
    files = {f"root/modelnet40_{split}.txt": "\n".join(found).encode() for split, found in names.items()}
    for name, table in zip(names["train"] + names["test"], values, strict=True):
        text = "\n".join(",".join(f"{v:.6f}" for v in row) for row in table)
        files[f"root/{name[:-5]}/{name}.txt"] = text.encode()
    return zipped(path, files), values


def test_modelnet40_resampled(tmp_path, monkeypatch, capsys):
    archive, values = resampled(tmp_path / "modelnet.zip")
    arguments = ["--output", str(tmp_path / "m.npz"), "--archive", str(archive), "--points", "8"]
    with pytest.raises(SystemExit, match=r"expected \{'train': 9843, 'test': 2468\}"):
        modelnet40.main(arguments)
    monkeypatch.setitem(modelnet40.COUNTS, "resampled", {"train": 40, "test": 40})
    modelnet40.main(arguments)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in capsys.readouterr().out
    shapes = Shapes.load(tmp_path / "m.npz")
    assert np.array_equal(shapes.points, values[:, :8, :3].astype(np.float32))
    directions = values[:, :8, 3:] / np.linalg.norm(values[:, :8, 3:], axis=-1, keepdims=True)
    assert np.abs(shapes.normals - directions).max() < 2e-3
    assert shapes.categories() == CATEGORIES and (shapes.split == "test").sum() == 40
    assert shapes.name[39] == "night_stand_0001" and shapes.category[39] == "night_stand"
    with pytest.raises(SystemExit, match="not 13 lines of six numbers"):
        modelnet40.main([*arguments[:-1], "13"])
    with pytest.raises(SystemExit, match="not the file it should be"):
        modelnet40.main([*arguments, "--sha256", "00"])


def test_modelnet40_hdf5(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(2)
    files, digests, points = {"r/shape_names.txt": "\n".join(CATEGORIES).encode()}, {}, {}
    for split in ("train", "test"):
        buffer, points[split] = io.BytesIO(), rng.random((40, 6, 3), np.float32) - 0.5
        with h5py.File(buffer, "w") as h5:
            h5["data"], h5["normal"] = points[split], points[split]
            h5["label"] = np.arange(40, dtype=np.uint8)[::-1, None]
        files[f"r/ply_data_{split}0.h5"] = buffer.getvalue()
        digests[f"ply_data_{split}0.h5"] = hashlib.md5(buffer.getvalue()).hexdigest()
    archive = zipped(tmp_path / "h.zip", files)
    monkeypatch.setitem(modelnet40.COUNTS, "hdf5", {"train": 40, "test": 40})
    monkeypatch.setattr(modelnet40, "MD5", digests)
    arguments = ["--output", str(tmp_path / "h.npz"), "--archive", str(archive), "--variant", "hdf5"]
    modelnet40.main(arguments)
    shapes = Shapes.load(tmp_path / "h.npz")
    assert np.array_equal(shapes.points[40:], points["test"]) and shapes.category[0] == "night_stand"
    assert shapes.name[41] == "test0_0001" and shapes.split[41] == "test"
    monkeypatch.setattr(modelnet40, "MD5", {**digests, "ply_data_test0.h5": "0"})
    with pytest.raises(SystemExit, match="MD5 is"):
        modelnet40.main(arguments)


@pytest.mark.shared
def test_development_files_are_converted(tmp_path, shared_data):
    source = shared_data / "modelnet40_airplane_2048.npz"
    modelnet40.main(["--output", str(tmp_path / "a.npz"), "--from-npz", str(source)])
    shapes = Shapes.load(tmp_path / "a.npz")
    assert [(shapes.split == s).sum() for s in ("train", "test")] == [626, 100]
    assert shapes.points.shape[1:] == (2048, 3) and shapes.categories() == ["airplane"]
    assert shapes.name[626] == "airplane_0627"


@pytest.mark.shared
def test_the_bunny_is_prepared_as_it_ships(tmp_path, shared_data, samples):
    bunny.prepare(shared_data / "bunny", tmp_path / "new")
    for name in ("source", "target"):
        assert (tmp_path / "new" / samples[name].name).read_bytes() == samples[name].read_bytes()
    (tmp_path / "bun000.ply").write_bytes(b"ply")
    with pytest.raises(SystemExit, match="not the file it should be"):
        bunny.prepare(tmp_path, tmp_path / "new")


BOX = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 4)], float)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
OBJ = "".join(f"v {x} {y} {z}\n" for x, y, z in BOX) + "".join(
    f"f {' '.join(str(i + 1) for i in quad)}\n" for quad in QUADS
)
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020, Somebody
License: CC-BY-SA-4.0-with-exception

Files: Battery.3dshapes/B_3.wrl
 Lib/*
Copyright: 2021, Another
License: {}
 The text.
"""


def vrml() -> str:
    points = ",".join(f"{x} {y} {z}" for x, y, z in BOX)
    first = ",".join(f"{a},{b},{c},-1,{a},{c},{d},-1" for a, b, c, d in QUADS[:3])
    rest = " ".join(f"{a} {b} {c} {d} -1" for a, b, c, d in QUADS[3:])
    one = "Shape {{ geometry IndexedFaceSet {{ coordIndex [{}] coord Coordinate {{ point [{}] }} }} }}\n"
    return "#VRML V2.0 utf8\n" + one.format(first, points) + one.format(rest, points)


def deb(folder: Path, name: str, files: dict[str, bytes]) -> None:
    root = folder / f"{name}.root"
    files = {
        **files,
        "DEBIAN/control": f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\n"
        "Description: x\n".encode(),
    }
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    subprocess.run(
        ["dpkg-deb", "--build", str(root), str(folder / f"{name}_1_all.deb")], check=True, capture_output=True
    )


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_cad_shapes_from_their_packages(tmp_path, capsys):
    catalogue = "name#1=Shelf\ncategory#1=Office\nmodel#1=/lib/a.obj\nname#2=Again\ncategory#2=x\nmodel#2=/lib/a.obj\n"
    library = zipped(
        tmp_path / "Lib.sh3f", {"PluginFurnitureCatalog.properties": catalogue.encode(), "lib/a.obj": OBJ.encode()}
    )
    doc = "usr/share/doc/p/copyright"
    deb(
        tmp_path,
        "sweethome3d-furniture",
        {doc: COPYRIGHT.format("CC0").encode(), "usr/share/s/Lib.sh3f": library.read_bytes()},
    )
    parts = {f"usr/share/kicad/Battery.3dshapes/B_{i}.wrl": vrml().encode() for i in range(6)}
    parts["usr/share/kicad/Other.3dshapes/T.wrl"] = b"Transform { " + vrml().encode() + b" }"
    deb(tmp_path, "kicad-packages3d", {doc: COPYRIGHT.format("GPL-3+").encode(), **parts})
    zipped(
        tmp_path / "pybullet-1-cp311.whl",
        {"pybullet_data/random_urdfs/007/007.obj": OBJ.encode(), "x/random_urdfs/1.mtl": b""},
    )
    arguments = ["--packages", str(tmp_path), "--output", str(tmp_path / "cad.npz")]
    cad.main([*arguments, "--points", "4000"])
    assert "left out: kicad-packages3d Other T (has a Transform)" in "".join(capsys.readouterr())
    shapes, data = Shapes.load(tmp_path / "cad.npz"), np.load(tmp_path / "cad.npz")
    rows = sorted(zip(*(data[k].tolist() for k in ("source", "category", "name", "licence")), strict=True))
    exception = "CC-BY-SA-4.0-with-exception"
    assert rows == [
        *(("kicad-packages3d", "Battery", f"B_{i}", exception) for i in (0, 1, 2, 4, 5)),  # 3 is under the GPL
        ("pybullet-random_urdfs", "random", "007", "see pybullet (zlib)"),
        ("sh3d-Lib", "Office", "Shelf", "CC0"),
    ]
    assert len(set(data["split"][data["source"] == "kicad-packages3d"])) == 1  # one family
    half = np.array([0.5, 1, 2]) / np.linalg.norm([0.5, 1, 2])
    for points, normals in zip(shapes.points, shapes.normals, strict=True):
        axis = np.abs(normals).argmax(1)
        assert np.abs(normals).max(1) == pytest.approx(1)
        share = np.bincount(axis) / 4000  # area: 2 * 4, 1 * 4, 1 * 2 of 14
        assert share == pytest.approx(np.array([8, 4, 2]) / 14, abs=0.03)
        height = np.take_along_axis(points, axis[:, None], 1)[:, 0]
        assert np.abs(height) == pytest.approx(half[axis], abs=0.03)
    cad.main([*arguments, "--points", "10", "--per-category", "2"])
    assert len(Shapes.load(tmp_path / "cad.npz")) == 4


def saved(array: object, modern: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(array, buffer, _use_new_zipfile_serialization=modern)
    return buffer.getvalue()


def test_pickles_of_arrays_are_read():
    table = OrderedDict(
        a=[np.eye(3), np.asfortranarray(np.arange(6.0).reshape(2, 3))], b=("text", None, np.float64(0.5))
    )
    for number in range(2, pickle.HIGHEST_PROTOCOL + 1):
        read = _unpickle.load(pickle.dumps(table, protocol=number))
        assert np.array_equal(read["a"][1], table["a"][1]) and read["b"] == table["b"]
    for modern in (True, False):
        assert np.array_equal(_unpickle.load_saved(saved(np.eye(4), modern)), np.eye(4))


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile",)


class Huge:
    def __reduce__(self):
        return np.ndarray, ((1 << 50,),)


class Type:
    """A type of this name with this state; the first below is one of objects that says it has none."""

    def __init__(self, name, *state):
        self.parts = np.dtype, (name, False, True), state

    def __reduce__(self):
        return self.parts


class Addresses:
    """An array of such a type, filled with numbers: NumPy would follow them."""

    def __reduce__(self):
        function, arguments, _ = np.zeros(1).__reduce__()
        return function, arguments, (1, (1,), Type("V8", *OBJECTS), False, b"A" * 8)


OBJECTS = 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0


@pytest.mark.parametrize(
    "thing",
    [
        Hostile(),
        np.array([Hostile()], object),
        {"src": [Hostile()]},
        Huge(),
        torch.ones(2),
        print,
        Type("V8", *OBJECTS),
        Addresses(),
        Type("V8", 3, "|", None, None, None, 64, 1, 0),  # longer than it is
        Type("V8", 3, "|", (np.dtype("f8"), (9,)), None, None, 8, 1, 0),
        Type("f8", 3, "<", None, None, None, -1, -1, 63),  # numbers, said to be objects
        np.zeros(2, [("a", "f8")]),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_pickles_that_could_do_harm_are_refused(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for reader, data in (
        (_unpickle.load, pickle.dumps(thing)),
        (_unpickle.load_saved, saved(thing, True)),
        (_unpickle.load_saved, saved(thing, False)),
    ):
        with pytest.raises(SystemExit, match="refused"):
            reader(data)
    assert list(tmp_path.iterdir()) == []


def test_damaged_pickles_are_refused():
    whole = saved(np.eye(4), True)
    for data in (b"", b"text", whole[: len(whole) // 2], saved(np.eye(4), False)[:40], pickle.dumps(1)):
        with pytest.raises(SystemExit):
            _unpickle.load_saved(data)


def test_blocks_of_a_gt_log():
    """The first of 7-Scenes' red kitchen."""
    text = (
        "0\t 1\t 60\n 9.96926560e-01\t 6.68735757e-02\t-4.06664421e-02\t-1.15576939e-01\t\n"
        "-6.61289946e-02\t 9.97617877e-01\t 1.94008687e-02\t-3.87705398e-02\t\n"
        " 4.18675510e-02\t-1.66517807e-02\t 9.98977765e-01\t 1.14874890e-01\t\n 0.0e+00\t 0.0e+00\t 0.0e+00\t 1.0e+00\n"
    )
    blocks = threedmatch.read_blocks(text, 4, "gt.log")
    assert list(blocks) == [(0, 1)] and blocks[0, 1][1, 3] == -0.0387705398
    with pytest.raises(SystemExit, match=r"gt\.log: not lines"):
        threedmatch.read_blocks(text + "1", 4, "gt.log")


def match_trees(folder: Path) -> tuple[Path, Path, dict[tuple[str, int], np.ndarray], np.ndarray]:
    """Two scenes of two fragments in the three forms that they come in, and the truth beside them."""
    rng = np.random.default_rng(3)
    clouds = {(s, n): rng.uniform(-2, 2, (50, 3)).astype(np.float32) for s in ("s1", "s2") for n in (0, 10)}
    files = {f"indoor/test/s1/cloud_bin_{n}.pth": saved(clouds["s1", n], n == 0) for n in (0, 10)}
    for n in (0, 10):
        write(folder / "x.ply", clouds["s2", n], overwrite=True)
        files[f"indoor/test/s2/fragments/cloud_bin_{n}.ply"] = (folder / "x.ply").read_bytes()
    pose = np.eye(4)
    pose[:3] = [[0, -1, 0, 0.25], [1, 0, 0, 0.5], [0, 0, 1, -1]]
    truth = folder / "truth"
    block = lambda m: "0\t10\t11\n" + "\n".join("\t".join(str(v) for v in row) for row in m) + "\n"  # noqa: E731
    for benchmark in ("3DMatch", "3DLoMatch"):
        for scene in ("s1", "s2"):
            (truth / benchmark / scene).mkdir(parents=True)
            (truth / benchmark / scene / "gt.log").write_text(block(pose))
            (truth / benchmark / scene / "gt.info").write_text(block(7 * np.eye(6)))
    table = {"src": ["test/s1/cloud_bin_10.pth"], "tgt": ["test/s1/cloud_bin_0.pth"], "overlap": np.array([0.4])}
    (truth / "3DMatch.pkl").write_bytes(pickle.dumps(table))
    return zipped(folder / "f.zip", files), truth, clouds, pose


def test_threedmatch_gives_what_the_tools_read(tmp_path):
    archive, truth, clouds, pose = match_trees(tmp_path)
    arguments = ["--output", str(tmp_path / "o.npz"), "--truth", str(truth), "--archive", str(archive)]
    with pytest.raises(SystemExit, match="not the benchmark's test set"):
        threedmatch.main(arguments)
    threedmatch.main([*arguments, "--incomplete"])
    fragments = Fragments(tmp_path / "o.npz")
    tasks = list(fragments.pairs("3dlomatch", 5, np.random.default_rng(0)))
    assert len(tasks) == 2 and {(t.source, t.target) for t in tasks} == {(1, 0), (3, 2)}  # T maps j into i
    assert all(np.array_equal(t.T_target_source, pose) and np.array_equal(t.information, 7 * np.eye(6)) for t in tasks)
    for k, (scene, number) in enumerate(sorted(clouds)):
        cloud, true = fragments.cloud(k, viewpoint=False), clouds[scene, number]
        points = cloud.points.double().numpy() + np.asarray(cloud.origin)
        order = (lambda p: p[np.lexsort(p.round(2).T)]) if scene == "s2" else (lambda p: p)  # thinned, in another order
        assert fragments.scene(k) == scene and fragments.data["fragment"][k] == number
        assert np.abs(order(points) - order(true)).max() < 1e-4
    overlap = fragments.data["3dmatch_overlap"]
    assert overlap[0] == np.float32(0.4) and np.isnan(overlap[1]) and "3dlomatch_overlap" not in fragments.data


def test_threedmatch_refuses_what_is_wrong(tmp_path):
    archive, truth, _, _ = match_trees(tmp_path)
    arguments = ["--output", str(tmp_path / "o.npz"), "--truth", str(truth), "--archive", str(archive), "--incomplete"]
    log = truth / "3DMatch" / "s1" / "gt.log"
    good = log.read_text()
    for bad, message in (
        (good.replace("-1.0", "-1.1"), "no rigid motion"),
        (good.replace("10", "4", 1), "pair 0 4 has no"),
    ):
        log.write_text(bad)
        with pytest.raises(SystemExit, match=message):
            threedmatch.main(arguments)
    log.write_text(good)
    (truth / "3DMatch.pkl").write_bytes(pickle.dumps({"src": Hostile()}))
    with pytest.raises(SystemExit, match="refused"):
        threedmatch.main(arguments)
    (truth / "3DMatch.pkl").unlink()
    zipped(archive, {f"indoor/test/s1/cloud_bin_{n}.pth": saved(np.eye(4), True) for n in (0, 10)})
    with pytest.raises(SystemExit, match=r"expected finite points \(N, 3\)"):
        threedmatch.main(arguments)
    zipped(archive, {"readme": b""})
    with pytest.raises(SystemExit, match=r"no test/SCENE/cloud_bin_N"):
        threedmatch.main(arguments)
    assert not (tmp_path / "o.npz").exists()
