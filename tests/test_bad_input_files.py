"""Files that are not what they say: each gets an `InputError` that names argument, path and remedy, within bounds."""

from __future__ import annotations

import os
import struct
import zipfile

import numpy as np
import pytest

from dlc_reg.errors import InputError
from dlc_reg.io import read, write

resource = pytest.importorskip("resource", reason="bounding the memory needs a POSIX system")

PLY = "ply\nformat {order} 1.0\nelement vertex {n}\nproperty float x\nproperty float y\nproperty float z\n"
PLY_END = "end_header\n"
PCD = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {n}\nHEIGHT 1\nPOINTS {n}\nDATA {data}\n"
XYZ = np.arange(300, dtype="<f4").tobytes()
HUGE = 10**12


def npy(shape, descr="'<f8'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"


def ply(order="binary_little_endian", n=100, extra="", body=XYZ):
    return (PLY.format(order=order, n=n) + extra + PLY_END).encode() + body


FACES = "element face 2\nproperty list uchar int vertex_indices\n"
BOMB = "element face 2\nproperty list uint double vertex_indices\n"

FILES = {
    # mislabelled
    "png.ply": (b"\x89PNG\r\n\x1a\n" + bytes(100), "PNG image"),
    "jpeg.pcd": (b"\xff\xd8\xff\xe0" + bytes(100), "JPEG image"),
    "gzip.xyz": (b"\x1f\x8b\x08" + bytes(100), "gzip archive"),
    "zip.npy": (b"PK\x03\x04" + bytes(100), "ZIP archive"),
    "text.npy": (b"1 2 3\n4 5 6\n", "content is text"),
    "text.ply": (b"1 2 3\n4 5 6\n", "content is text"),
    "text.glb": (b"1 2 3\n4 5 6\n", "content is text"),
    "text.las": (b"1 2 3\n4 5 6\n", "content is text"),
    "really_ply.pcd": (ply(), r"a PLY file; rename it to \.ply"),
    "really_ply.xyz": (ply("ascii", 1, body=b"1 2 3\n"), r"rename it to \.ply"),
    "binary.csv": (bytes(range(256)), "binary data of an unknown kind"),
    "binary.obj": (bytes(range(256)), "binary data of an unknown kind"),
    **{f"empty{suffix}": (b"", "empty") for suffix in (".ply", ".pcd", ".npy", ".npz", ".xyz", ".stl", ".obj", ".glb")},
    # truncated
    "cut.ply": (ply()[:-5], "truncated: 100 rows of vertex promised, 1195 bytes there"),
    "cut_at_a_row.ply": (ply()[:-12], "truncated: 100 rows of vertex promised, 1188 bytes there"),
    "cut_text.ply": (ply("ascii", 3, body=b"1 2 3\n4 5 6\n"), "truncated"),
    "cut_line.ply": (ply("ascii", 2, body=b"1 2 3.0000\n4 5\n"), "columns"),
    "cut_header.ply": (b"ply\nformat ascii 1.0\nelement vertex 3\n", "no end_header"),
    "cut_faces.ply": (ply(extra=FACES, body=XYZ + struct.pack("<Biii", 3, 0, 1, 2)), "truncated or damaged"),
    "cut_faces_text.ply": (ply("ascii", 3, FACES, b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n3 0"), "no row of face"),
    "cut.pcd": ((PCD.format(n=100, data="binary")).encode() + XYZ[:-5], "truncated"),
    "cut_at_a_row.pcd": (
        (PCD.format(n=100, data="binary")).encode() + XYZ[:-12],
        "promises 100 points, and 1188 bytes",
    ),
    "cut_text.pcd": ((PCD.format(n=3, data="ascii")).encode() + b"1 2 3\n4 5 6\n", "truncated"),
    "cut_packed.pcd": (
        PCD.format(n=100, data="binary_compressed").encode() + struct.pack("<II", 900, 1200) + bytes(500),
        "500 compressed bytes instead of 900",
    ),
    "cut_header.pcd": (b"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\n", "no DATA line"),
    "cut.npy": (npy((100, 3)) + bytes(2399), "truncated"),
    "cut_header.npy": (npy((100, 3))[:30], "cannot be read"),
    "cut.npz": (b"PK\x03\x04" + bytes(60), "not a zip file"),
    "cut.stl": (bytes(80) + struct.pack("<I", 10) + bytes(499), "binary data of an unknown kind"),
    "cut_text.stl": (
        b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0",
        "neither triangles nor points",
    ),
    "cut.off": (b"OFF\n8 12 0\n0 0 0\n1 0 0\n", "cannot be read"),
    "cut.glb": (b"glTF" + struct.pack("<II", 2, 5000) + b"{}", "cannot be read"),
    "cut.pts": (b"5\n1 2 3\n4 5 6\n", "truncated: 2 of 5 points"),
    # promises that would fill the memory
    "huge.ply": (ply(n=HUGE), f"truncated: {HUGE} rows of vertex promised"),
    "huge_text.ply": (ply("ascii", HUGE, body=b"1 2 3\n"), "promised"),
    "huge_negative.ply": (ply(n=-1), "not understood"),
    "huge_unused.ply": (ply(extra=f"element other {HUGE}\nproperty int a\n"), "rows of other promised"),
    "huge_empty_rows.ply": (ply(extra=f"element other {HUGE}\n"), "rows of other promised"),
    "list_bomb.ply": (ply(extra=BOMB, body=XYZ + struct.pack("<I", 2**32 - 1)), "promised|beyond the end"),
    "list_bomb_later.ply": (
        ply(extra=BOMB, body=XYZ + struct.pack("<I3dI", 3, 0, 1, 2, 2**32 - 1)),
        "a row of face goes beyond the end",
    ),
    "list_bomb_text.ply": (ply("ascii", 1, FACES, b"0 0 0\n3 0 0 0\n4000000000 0\n"), "no row of face"),
    "huge_header.ply": (b"ply\nformat ascii 1.0\n" + b"comment x\n" * 200_000, "no end_header"),
    "huge.pcd": ((PCD.format(n=HUGE, data="binary")).encode() + XYZ, "truncated"),
    "huge_text.pcd": ((PCD.format(n=HUGE, data="ascii")).encode() + b"1 2 3\n", "truncated"),
    "huge_packed.pcd": (
        PCD.format(n=HUGE, data="binary_compressed").encode() + struct.pack("<II", 900, 2**32 - 1) + bytes(900),
        "truncated",
    ),
    "huge_count.pcd": (
        PCD.format(n=1, data="binary").replace("COUNT 1", f"COUNT {HUGE}").encode(),
        "incomplete|truncated",
    ),
    "huge.npy": (npy((HUGE, 3)), "truncated: the header promises shape"),
    "huge.off": (f"OFF\n{HUGE} {HUGE} 0\n0 0 0\n".encode(), "cannot be read"),
    "huge.stl": (bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50), "binary data of an unknown kind"),
    # damaged
    "type.ply": (ply().replace(b"float x", b"quad x"), "'property quad x' is not understood"),
    "no_x.ply": (ply().replace(b"float x", b"float a"), "lacks x, y or z"),
    "twice.ply": (ply().replace(b"float y", b"float x"), "cannot be read"),
    "no_vertex.ply": (ply().replace(b"vertex", b"corner"), "no element named vertex"),
    "no_format.ply": (ply().replace(b"format", b"fermat"), "not understood"),
    "word.ply": (ply("ascii", 2, body=b"1 2 3\n4 five 6\n"), "could not convert string 'five'"),
    "corner.ply": (ply("ascii", 3, FACES, b"0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n3 0 1 2\n"), "a vertex outside 0..2"),
    "flat.ply": (ply("ascii", 3, FACES, b"0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n3 0 1 2\n"), "no area"),
    "nan.ply": (ply("ascii", 3, FACES, b"0 0 nan\n1 0 0\n2 0 0\n3 0 1 2\n3 0 1 2\n"), "non-finite vertices"),
    "fields.pcd": (PCD.format(n=100, data="binary").replace("FIELDS x y z", "FIELDS x y").encode() + XYZ, "damaged"),
    "count.pcd": (PCD.format(n=100, data="binary").replace("COUNT 1", "COUNT 0").encode() + XYZ, "COUNT below 1"),
    "data.pcd": (PCD.format(n=100, data="base64").encode() + XYZ, "DATA is 'base64'"),
    "garbage.pcd": (
        PCD.format(n=100, data="binary_compressed").encode() + struct.pack("<II", 900, 1200) + b"\xff" * 900,
        "cannot be read",
    ),
    "latin.xyz": ("1 2 3 # Größe\n".encode("latin-1"), "utf-8"),
    "utf16.xyz": ("1 2 3\n4 5 6\n".encode("utf-16"), "binary data|utf-8"),
    "words.xyz": (b"hello world\nthis is not a cloud\n", "could not convert"),
    "prose.txt": (b"Lorem ipsum dolor\n", "no line of numbers"),
    "ragged.xyz": (b"1 2 3\n4 5\n", "columns"),
    "two.xyz": (b"1 2\n3 4\n", "2 numbers instead of three"),
    "comments.xyz": (b"# nothing\n\n", "no line of numbers"),
    "flat.npy": (npy((4,)) + bytes(32), r"whose array is an array of shape \(4,\); expected .*\(N, 3\)"),
    "six.npy": (npy((2, 6)) + bytes(96), r"shape \(2, 6\); expected .*coordinates alone \(array\[:, :3\]\)"),
    "complex.npy": (npy((2, 3), "'<c16'") + bytes(96), "dtype complex128"),
    "record.npy": (npy((2,), "[('x', '<f8')]") + bytes(16), "real numbers"),
    "empty_mesh.obj": (b"# nothing here\n", "cannot be read"),
    "no_face.stl": (b"solid nothing\nendsolid nothing\n", "cannot be read"),
}


@pytest.fixture
def little_memory():
    """4 GiB of address space above what is in use: allocating 10^12 points fails even where memory is overcommitted."""
    if not os.path.exists("/proc/self/statm"):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(tmp_path, name, little_memory):
    content, reason = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read(path, argument="target")
    assert caught.value.argument == "target" and str(path) in caught.value.given
    assert caught.value.expected and not isinstance(caught.value.__cause__, MemoryError)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.save(tmp_path / "a.npy", np.array([Bomb()] * 3, object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", points=np.array([Bomb()] * 3, object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="never loaded"):
            read(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_zip_bombs(tmp_path):
    zeros = npy((30_000_000, 3), "'|u1'")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("points.npy", zeros + bytes(90_000_000))
    with pytest.raises(InputError, match="are no plain arrays"):
        read(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("points.npy", npy((HUGE, 3)))
    with pytest.raises(InputError, match="truncated: the header promises shape"):
        read(tmp_path / "liar.npz")


@pytest.mark.parametrize("suffix", [".las", ".laz"])
def test_las(tmp_path, rng, suffix, little_memory):
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=0, version="1.2"))
    las.x, las.y, las.z = rng.normal(size=(3, 5000))
    path = tmp_path / f"a{suffix}"
    las.write(path)
    whole = path.read_bytes()
    assert len(read(path).points) == 5000
    for cut in (20, 100, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cannot be read"):
            read(path)
    path.write_bytes(whole[:107] + struct.pack("<I", 2**32 - 1) + whole[111:])
    with pytest.raises(InputError, match=r"4294967295 points promised"):
        read(path)


def test_paths_that_are_no_files(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"source: got '.*none\.ply', which does not exist"):
        read(tmp_path / "none.ply", argument="source")
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(InputError, match="a directory"):
        read(tmp_path / "folder.ply")
    os.mkfifo(tmp_path / "pipe.ply")
    with pytest.raises(InputError, match="no regular file"):
        read(tmp_path / "pipe.ply")
    (tmp_path / "loop.ply").symlink_to("loop.ply")
    for path in (
        tmp_path / "loop.ply",
        tmp_path / ("x" * 300 + ".ply"),
        "~nobody-by-this-name/a.ply",
        "a\0.ply",
        "",
        b"a.ply",
    ):
        with pytest.raises(InputError):
            read(path)
    for name in ("a.jpg", "a", "a.ply.gz"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=r"suffix is .*expected one of \.ply \.pcd"):
            read(tmp_path / name)


def test_unreadable_permissions(tmp_path, monkeypatch):
    path = tmp_path / "a.ply"
    write(path, np.eye(3))
    if os.geteuid() == 0:  # root may read anything: refuse in its place
        monkeypatch.setattr("io.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    path.chmod(0)
    with pytest.raises(InputError, match=r"may not be read; expected read permission \(chmod u\+r\)"):
        read(path)


@pytest.mark.parametrize("suffix", [".ply", ".pcd", ".npy", ".npz", ".xyz", ".stl", ".obj", ".off", ".glb"])
def test_damage_at_any_place_is_an_input_error_or_a_cloud(tmp_path, rng, suffix):
    """Cut short and with bytes changed, at random: nothing but InputError may come out, and no crash."""
    path = tmp_path / f"a{suffix}"
    if suffix in (".stl", ".obj", ".off", ".glb"):
        trimesh = pytest.importorskip("trimesh")
        trimesh.creation.box().export(path)
    else:
        write(path, rng.normal(size=(20, 3)), np.tile([0, 0, 1.0], (20, 1)))
    whole = path.read_bytes()
    refused = 0
    for trial in range(60):
        damaged = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        for _ in range(3):
            if damaged:
                damaged[rng.integers(min(len(damaged), 400))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read(path).points.shape[1] == 3
        except InputError as error:
            refused += 1
            assert str(path) in error.given
    assert refused >= (10 if suffix in (".obj", ".xyz") else 25)
