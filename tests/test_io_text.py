"""Clouds in text files: layouts that others write, and what the columns after the coordinates mean."""

from __future__ import annotations

import numpy as np
import pytest

from dlc_reg.io import read


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blanks.xyz", "# a comment\n\n1 2 3\n4\t5 6\n  7 8   9  \n"),
        ("commas.csv", "1,2,3\n4,5,6\n7, 8, 9\n"),
        ("semicolons.txt", "1;2;3\n4;5;6\n7;8;9\n"),
        ("names.csv", "time,X,Y,Z,extra\n0,1,2,3,0\n0,4,5,6,0\n0,7,8,9,0\n"),
        ("cloudcompare.asc", "//X Y Z Intensity\n1 2 3 9\n4 5 6 9\n7 8 9 9\n"),
        ("count.pts", "3\n1 2 3 -9\n4 5 6 -9\n7 8 9 -9\n"),
        ("mark.xyz", "\ufeff1 2 3\n4 5 6\n7 8 9\n"),
        ("windows.xyz", "1 2 3\r\n4 5 6\r\n7 8 9\r\n"),
        ("UPPER.XYZ", "1 2 3\n4 5 6\n7 8 9"),
        ("Größe ☃ und Leerzeichen.xyz", "1 2 3\n4 5 6\n7 8 9\n"),
    ],
)
def test_text_layouts(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    np.testing.assert_array_equal(read(tmp_path / name).points, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_text_columns_after_the_coordinates(tmp_path):
    (tmp_path / "n.xyz").write_text("1 2 3 0 0 1\n4 5 6 0 1 0\n")
    np.testing.assert_array_equal(read(tmp_path / "n.xyz").normals, [[0, 0, 1], [0, 1, 0]])
    (tmp_path / "c.pts").write_text("2\n1 2 3 -7 255 0 51\n4 5 6 8 0 0 0\n")
    np.testing.assert_allclose(read(tmp_path / "c.pts").colors, [[1, 0, 0.2], [0, 0, 0]])
    (tmp_path / "u.xyz").write_text("1 2 3 17 0 1\n4 5 6 3 1 0\n")
    unknown = read(tmp_path / "u.xyz")
    assert unknown.normals is None and unknown.colors is None


def test_real_csv(shared_data):
    back = read(shared_data / "car" / "car_cloud400.csv")
    np.testing.assert_array_equal(back.points[0], [-3.5376, 0.639553, -1.37678])
    np.testing.assert_array_equal(back.normals[0], [-0.060181, 0.173729, 0.982953])
