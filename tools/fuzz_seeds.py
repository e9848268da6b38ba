"""Small whole files of every kind that is read, from which `fuzz.py` makes damaged ones."""

from __future__ import annotations

import io
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from dlc_reg._many_output import COLUMNS
from dlc_reg._pcd import write_pcd
from dlc_reg.io import write

ROOT = Path(__file__).resolve().parent.parent
POINTS = 12
MATRIX = "1 0 0 0.5\n0 1 0 -2\n0 0 1 3e-3\n0 0 0 1\n"


def whole_files(folder: Path) -> dict[str, list[bytes]]:
    """Files by suffix; that of what is no cloud has two parts, the first of which says what it is."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(POINTS, 3)).round(3)
    normals, colors = points / np.linalg.norm(points, axis=1, keepdims=True), rng.random((POINTS, 3))
    found: dict[str, list[bytes]] = {".ply": plys(points), ".pcd": pcds(points), ".npy": npys(points)}
    for suffix in (".ply", ".pcd", ".npz", ".xyz", ".txt"):
        for extras in ((None, None), (normals, colors)):
            write(folder / f"a{suffix}", points, *extras, overwrite=True)
            found.setdefault(suffix, []).append((folder / f"a{suffix}").read_bytes())
    found[".npz"].append(npz(points=points, viewpoint=np.zeros(3)))
    found[".csv"] = [b"x,y,z\n1,2,3\n4,5,6\n7,9,9\n", b"// x;y;z;r;g;b\n1;2;3;4;5;6\n4;5;6;0;0;0\n7;9;9;1;2;255\n"]
    found[".pts"] = [b"3\n1 2 3 -100 4 5 6\n4 5 6 0 7 8 9\n7 9 9 1 0 0 0\n", b"1 2 3\n4 5 6\n7 9 10\n"]
    found[".xyzrgb"] = [b"1 2 3 0.5 0.5 0.5\n4 5 6 0 0 1\n1 0 1 1 1 1\n"]
    box = trimesh.creation.box()
    for suffix in (".stl", ".obj", ".off", ".glb"):
        found[suffix] = [exported(box, suffix)]
    found[".glb"].append(exported(trimesh.PointCloud(points), ".glb"))
    found[".stl"].append(exported(box, ".stl_ascii"))
    found[".obj"].append(
        b"mtllib a.mtl\no a\nv 0 0 0 1 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 1\nvt 0 0\nf 1/1 2/1 3/1 4/1\nf -1 -2 -3\n"
    )
    found |= las_files(points, folder) | e57_files(points, folder)
    found[".pairs.csv"] = [
        b"source,target,init,name,T_target_source\na.ply,b.ply,,one,\nc/a.ply,b.ply,"
        + MATRIX.replace("\n", " ").encode()
        + b",two,"
        + MATRIX.replace("\n", " ").encode()
        + b"\n",
        b"source,target\na.ply,b.ply\na.ply,c/../c.ply\n",
    ]
    row = ["a", "b", "c", "aligned", "", "1", "0", *("1" for _ in range(16)), "1", ""]
    found[".results.csv"] = [(",".join(COLUMNS) + "\n" + ",".join(row) + "\n").encode()]
    found[".matrix.txt"] = [MATRIX.encode(), MATRIX.replace(" ", ",").encode() + b"# end\n"]
    found[".safetensors"] = [(resources.files("dlc_reg") / "weights" / "ranked.safetensors").read_bytes()]
    found[".columns.npz"] = [npz(points=points, labels=np.arange(3)), npz(points=points, labels=np.array(["a", "b"]))]
    found[".toml"] = [path.read_bytes() for path in sorted((ROOT / "recipes").rglob("*.toml"))]
    for suffix, form in ((".png", "PNG"), (".jpg", "JPEG"), (".tif", "TIFF"), (".bmp", "BMP"), (".webp", "WEBP")):
        found[suffix] = [image(form)]
    return found


def plys(points: np.ndarray) -> list[bytes]:
    """Text and both byte orders, without faces and with such as differ in length."""
    out = []
    faces = [(0, 1, 2), (0, 1, 2, 3), (1, 2, 3)]
    for form, order in (("ascii", ""), ("binary_little_endian", "<"), ("binary_big_endian", ">")):
        for with_faces in (False, True):
            head = f"ply\nformat {form} 1.0\ncomment a\nelement vertex {len(points)}\n"
            head += "".join(
                f"property {kind} {name}\n" for kind, name in (("float", "x"), ("double", "y"), ("float", "z"))
            )
            if with_faces:
                head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\nproperty uchar flags\n"
            head += "end_header\n"
            body = b""
            for x, y, z in points:
                body += struct.pack(order + "fdf", x, y, z) if order else f"{x} {y} {z}\n".encode()
            for face in faces if with_faces else ():
                values = (len(face), *face, 7)
                body += (
                    struct.pack(f"{order}B{len(face)}iB", *values)
                    if order
                    else (" ".join(map(str, values)) + "\n").encode()
                )
            out.append(head.encode() + body)
    return out


def pcds(points: np.ndarray) -> list[bytes]:
    """Text, and packed by LZF, whose literal runs anybody can write."""
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z rgb _\nSIZE 4 4 4 4 1\nTYPE F F F U U\nCOUNT 1 1 1 1 2\nWIDTH {n}\n"
        "HEIGHT 1\nVIEWPOINT 1 2 3 1 0 0 0\nPOINTS {n}\nDATA {data}\n"
    )
    n = len(points)
    text = "".join(f"{x} {y} {z} 16711680 1 2\n" for x, y, z in points)
    columns = b"".join(points[:, a].astype("<f4").tobytes() for a in range(3)) + bytes(4 * n) + bytes(2 * n)
    packed = b"".join(
        bytes([len(part) - 1]) + part for part in (columns[i : i + 32] for i in range(0, len(columns), 32))
    )
    stream = io.BytesIO()
    write_pcd(stream, dict(zip("xyz", points.T.astype("f4"), strict=True)))
    return [
        head.format(n=n, data="ascii").encode() + text.encode(),
        head.format(n=n, data="binary_compressed").encode() + struct.pack("<II", len(packed), len(columns)) + packed,
        head.format(n=n, data="binary").encode() + b"".join(struct.pack("<3fI2B", *p, 255, 1, 2) for p in points),
        stream.getvalue(),
    ]


def npys(points: np.ndarray) -> list[bytes]:
    out = []
    for array in (points, points.astype("f4"), np.asfortranarray(points), points.astype(">f8"), points.astype("i2")):
        stream = io.BytesIO()
        np.save(stream, array)
        out.append(stream.getvalue())
    return out


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def exported(mesh: Any, suffix: str) -> bytes:
    content = mesh.export(file_type=suffix[1:])
    return content.encode() if isinstance(content, str) else content


def las_files(points: np.ndarray, folder: Path) -> dict[str, list[bytes]]:
    try:
        import laspy
    except ImportError:
        return {}
    found: dict[str, list[bytes]] = {".las": [], ".laz": []}
    for suffix, contents in found.items():
        for form, version in ((0, "1.2"), (3, "1.2"), (7, "1.4")):
            las = laspy.LasData(laspy.LasHeader(point_format=form, version=version))
            las.x, las.y, las.z = points.T
            las.write(folder / f"a{suffix}")
            contents.append((folder / f"a{suffix}").read_bytes())
    return found


def e57_files(points: np.ndarray, folder: Path) -> dict[str, list[bytes]]:
    try:
        import pye57
    except ImportError:
        return {}
    path = folder / "a.e57"
    columns = dict(zip(("cartesianX", "cartesianY", "cartesianZ"), np.ascontiguousarray(points.T), strict=True))
    out = []
    for rotation in (np.array([1.0, 0, 0, 0]), np.array([0.6, 0.8, 0, 0])):
        with pye57.E57(str(path), "w") as file:
            file.write_scan_raw(columns, rotation=rotation, translation=np.array([1.0, 2, 3]))
        out.append(path.read_bytes())
        path.unlink()
    return {".e57": out}


def image(form: str) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(stream, form)
    return stream.getvalue()


# --- checksums of E57's pages: without them all damage would be found by them -----------------------------------------
def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def page_checksums(content: bytes, page: int = 1024) -> bytes:
    """The same with CRC-32C right at the end of each whole page."""
    out = bytearray(content)
    for start in range(0, len(out) - page + 1, page):
        crc = 0xFFFFFFFF
        for byte in out[start : start + page - 4]:
            crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
        out[start + page - 4 : start + page] = struct.pack(">I", crc ^ 0xFFFFFFFF)
    return bytes(out)
