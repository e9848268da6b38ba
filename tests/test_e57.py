"""E57: poses, viewpoints, colours and invalid points of files that libE57Format wrote; and files that are damaged."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
from commanding import run
from registering import any_pose, move
from scipy.spatial.transform import Rotation

import dlc_reg
from dlc_reg import InputError
from dlc_reg.io import read

pye57 = pytest.importorskip("pye57", reason="the extra e57 is not installed")
libe57 = pye57.libe57

XYZ = ("cartesianX", "cartesianY", "cartesianZ")
RAE = ("sphericalRange", "sphericalAzimuth", "sphericalElevation")
RGB = ("colorRed", "colorGreen", "colorBlue")


def write(path, *scans):
    """Each scan: (columns by E57's names, pose (4, 4) or None, limits of colours or None)."""
    file = pye57.E57(str(path), "w")
    image = file.image_file
    for columns, pose, limits in scans:
        scan = libe57.StructureNode(image)
        scan.set("guid", libe57.StringNode(image, "{a}"))
        if pose is not None:
            x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
            node = libe57.StructureNode(image)
            scan.set("pose", node)
            for name, parts in (
                ("rotation", {"w": w, "x": x, "y": y, "z": z}),
                ("translation", dict(zip("xyz", pose[:3, 3], strict=True))),
            ):
                inner = libe57.StructureNode(image)
                node.set(name, inner)
                for part, value in parts.items():
                    inner.set(part, libe57.FloatNode(image, float(value)))
        if limits is not None:
            node = libe57.StructureNode(image)
            scan.set("colorLimits", node)
            for name in RGB:
                node.set(name + "Minimum", libe57.IntegerNode(image, limits[0]))
                node.set(name + "Maximum", libe57.IntegerNode(image, limits[1]))
        prototype = libe57.StructureNode(image)
        buffers = libe57.VectorSourceDestBuffer()
        for name, values in columns.items():
            if values.dtype.kind == "f":
                prototype.set(name, libe57.FloatNode(image, 0.0, libe57.E57_DOUBLE))
            else:
                top = 65535 if name in RGB and values.max(initial=0) > 255 else 255 if name in RGB else 2
                prototype.set(name, libe57.IntegerNode(image, 0, 0, top))
            kept = np.ascontiguousarray(values, np.float64)
            columns[name] = kept  # the buffer points into it
            buffers.append(libe57.SourceDestBuffer(image, name, kept, len(kept), True, True))
        points = libe57.CompressedVectorNode(image, prototype, libe57.VectorNode(image, True))
        scan.set("points", points)
        file.data3d.append(scan)
        writer = points.writer(buffers)
        writer.write(len(next(iter(columns.values()))))
        writer.close()
    file.close()
    return path


def columns(points, names=XYZ, **more):
    return dict(zip(names, points.T, strict=True)) | more


def test_points_are_in_the_files_frame_and_the_pose_is_the_viewpoint(tmp_path, rng):
    points = rng.normal(size=(300, 3)) * 10
    pose = any_pose(rng)
    pose[:3, 3] += [4.1e5, 5.8e6, 120]
    cloud = read(write(tmp_path / "a.e57", (columns(points), pose, None)))
    np.testing.assert_allclose(cloud.points, move(pose, points), rtol=0, atol=2e-9)
    np.testing.assert_allclose(cloud.viewpoint, pose[:3, 3], rtol=0, atol=1e-9)
    assert cloud.colors is None and cloud.normals is None and cloud.kind == "points"
    whole = dlc_reg.PointCloud.from_any(tmp_path / "a.e57")
    np.testing.assert_allclose(whole.viewpoint, pose[:3, 3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("pose", [None, np.eye(4)])
def test_a_pose_that_says_nothing_is_no_viewpoint(tmp_path, rng, pose):
    points = rng.normal(size=(300, 3))
    cloud = read(write(tmp_path / "a.e57", (columns(points), pose, None)))
    np.testing.assert_array_equal(cloud.points, points)
    assert cloud.viewpoint is None


@pytest.mark.parametrize("moved", [False, True])
def test_spherical_coordinates_are_seen_from_their_origin(tmp_path, rng, moved):
    points = rng.normal(size=(300, 3))
    distance = np.linalg.norm(points, axis=1)
    angles = np.arctan2(points[:, 1], points[:, 0]), np.arcsin(points[:, 2] / distance)
    pose = any_pose(rng) if moved else None
    cloud = read(write(tmp_path / "a.e57", (columns(np.column_stack([distance, *angles]), RAE), pose, None)))
    at = np.eye(4) if pose is None else pose
    np.testing.assert_allclose(cloud.points, move(at, points), atol=1e-12)
    np.testing.assert_allclose(cloud.viewpoint, at[:3, 3], atol=1e-12)


def test_invalid_points_are_left_out(tmp_path, rng):
    points, state = rng.normal(size=(300, 3)), rng.integers(0, 3, 300)
    cloud = read(write(tmp_path / "a.e57", (columns(points, cartesianInvalidState=state), None, None)))
    np.testing.assert_array_equal(cloud.points, points[state == 0])


@pytest.mark.parametrize(("top", "limits"), [(255, None), (65535, None), (1023, (0, 1023)), (255, (0, 0))])
def test_colours(tmp_path, rng, top, limits):
    values = rng.integers(0, top + 1, (300, 3))
    values[0] = top
    rows = columns(rng.normal(size=(300, 3)), **dict(zip(RGB, values.T, strict=True)))
    cloud = read(write(tmp_path / "a.e57", (rows, None, limits)))
    np.testing.assert_allclose(cloud.colors, values / top, atol=1e-12)


def test_several_scans_are_one_cloud(tmp_path, rng):
    parts = [rng.normal(size=(count, 3)) for count in (300, 200, 100)]
    poses = [any_pose(rng) for _ in parts]
    colour = {name: np.full(300, 51) for name in RGB}
    scans = [(columns(p), pose, None) for p, pose in zip(parts, poses, strict=True)]
    cloud = read(write(tmp_path / "a.e57", *scans))
    expected = np.concatenate([move(pose, p) for p, pose in zip(parts, poses, strict=True)])
    np.testing.assert_allclose(cloud.points, expected, atol=1e-12)
    assert cloud.viewpoint is None  # the scanner stood in three places
    same = [(columns(parts[0], **colour), poses[0], None), (columns(parts[1]), poses[0], None)]
    cloud = read(write(tmp_path / "b.e57", *same))
    np.testing.assert_allclose(cloud.viewpoint, poses[0][:3, 3])
    assert cloud.colors is None  # one scan has none


def test_what_pye57_itself_writes(tmp_path, rng):
    points = rng.normal(size=(300, 3)).astype(np.float32)
    pose = any_pose(rng)
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    with pye57.E57(str(tmp_path / "a.e57"), "w") as file:
        rows = columns(points, colorRed=np.full(300, 255), colorGreen=np.zeros(300, int), colorBlue=np.full(300, 51))
        file.write_scan_raw(rows, rotation=np.array([w, x, y, z]), translation=pose[:3, 3])
    cloud = read(tmp_path / "a.e57")
    np.testing.assert_allclose(cloud.points, move(pose, points), atol=1e-6)
    np.testing.assert_allclose(cloud.colors, np.tile([1, 0, 0.2], (300, 1)), atol=1e-12)
    with pye57.E57(str(tmp_path / "a.e57")) as file:
        theirs = file.read_scan(0, ignore_missing_fields=True)
    np.testing.assert_allclose(cloud.points, np.column_stack([theirs[name] for name in XYZ]), atol=1e-6)


def test_the_command_reads_it(tmp_path, rng):
    write(tmp_path / "a.e57", (columns(rng.normal(size=(300, 3))), any_pose(rng), None))
    done = run("info", tmp_path / "a.e57")
    assert done.exit_code == 0 and "300" in done.stdout and "viewpoint     (" in done.stdout


# --- hostile ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def whole(tmp_path, rng):
    """A good file of 5000 points, as bytes."""
    return write(tmp_path / "good.e57", (columns(rng.normal(size=(5000, 3))), any_pose(rng), None)).read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read(path, argument="target")
    assert caught.value.argument == "target" and str(path) in caught.value.given and "\n" not in str(caught.value)
    assert path.read_bytes() == content  # a reader that fails must not remove it
    return str(caught.value)


def test_truncated_files(tmp_path, whole):
    for cut in (4, 20, 47, 48, 1000, len(whole) // 2, len(whole) - 1):
        message = refused(tmp_path / "a.e57", whole[:cut])
        assert "truncated" in message or "cannot be read" in message, message
    assert "its content is" in refused(tmp_path / "a.e57", b"ply\nformat")
    assert "empty" in refused(tmp_path / "a.e57", b"")


@pytest.mark.parametrize("at", [100, 2000, -700])
def test_flipped_bits_are_found(tmp_path, whole, at):
    damaged = bytearray(whole)
    damaged[at] ^= 0xFF
    assert "cannot be read" in refused(tmp_path / "a.e57", bytes(damaged))


@pytest.mark.parametrize(("where", "value"), [(24, 2**60), (32, 2**60), (40, 3), (40, 2**60), (16, 2**60)])
def test_headers_that_lie(tmp_path, whole, where, value):
    message = refused(tmp_path / "a.e57", whole[:where] + struct.pack("<Q", value) + whole[where + 8 :])
    assert "damaged" in message or "truncated" in message


def crc32c(data):
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def with_xml(whole, *changes):
    """The same file with other XML, as long as it was, and right checksums."""
    pages = [whole[start : start + 1020] for start in range(0, len(whole), 1024)]
    text = b"".join(pages)
    length = len(text)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    assert len(text) == length
    pages = [text[start : start + 1020] for start in range(0, length, 1020)]
    return b"".join(page + struct.pack(">I", crc32c(page)) for page in pages)


def test_more_points_than_the_file_holds(tmp_path, whole):
    name = b"<![CDATA[{a}]]>", b"{a}"
    (tmp_path / "b.e57").write_bytes(with_xml(whole, name, (b'recordCount="5000"', b'recordCount="0000000000005000"')))
    assert len(read(tmp_path / "b.e57").points) == 5000  # the checksums made here are right
    for count in (b"1" + bytes(15).replace(b"\0", b"0"), b"0000000099999999"):
        lie = with_xml(whole, name, (b'recordCount="5000"', b'recordCount="' + count + b'"'))
        assert "points promised by a file of" in refused(tmp_path / "a.e57", lie)
    lie = with_xml(whole, (b'recordCount="5000"', b'recordCount="9999"'))
    assert "cannot be read" in refused(tmp_path / "a.e57", lie)


def test_a_document_type_is_refused(tmp_path, whole):
    start = whole.index(b"<?xml")
    end = whole.index(b"?>", start) + 2
    head = whole[start:end]
    new = b"<!DOCTYPE a>".ljust(len(head))  # in place of the declaration, which XML can do without
    assert "document type" in refused(tmp_path / "a.e57", with_xml(whole, (head, new)))


def test_a_file_without_a_scan_and_one_without_coordinates(tmp_path):
    assert "no scan" in refused(tmp_path / "a.e57", write(tmp_path / "b.e57").read_bytes())
    rows = {"intensity": np.zeros(10)}
    content = write(tmp_path / "b.e57", (rows, None, None)).read_bytes()
    assert "neither cartesian nor spherical" in refused(tmp_path / "a.e57", content)


def test_without_pye57_the_extra_is_named(tmp_path, whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "pye57", None)
    assert 'pip install "dlc_reg[e57]"' in refused(tmp_path / "a.e57", whole)
