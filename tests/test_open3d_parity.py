"""docs/open3d.md's table is what tools/open3d_parity.py finds, and nothing is missing without a word."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT

pytest.importorskip(
    "open3d",
    reason="Open3D is not importable (pip install 'dlc_reg[open3d]'; on Debian its wheel needs libusb-1.0-0)",
    exc_type=ImportError,
)
sys.path.append(str(ROOT / "tools"))

import open3d_parity as parity


@pytest.mark.parametrize("which", parity.MODULES)
def test_no_gap_is_undocumented(which):
    assert list(parity.gaps(which)) == []


@pytest.mark.skipif(
    not parity.open3d.__version__.startswith("0.20"),
    reason=f"the table is of 0.20, this is {parity.open3d.__version__}",
)
def test_the_documents_table_is_up_to_date():
    text = parity.DOCUMENT.read_text()
    assert text.split(parity.BEGIN)[1].split(parity.END)[0].strip() == parity.table().strip()


def test_every_name_has_one_row():
    for which, (theirs, _) in parity.MODULES.items():
        names = [name for name, _ in parity.rows(which)]
        assert len(names) == len(set(names))
        assert set(parity.public(theirs)) <= set(names)


class Theirs:
    def __init__(self):
        """__init__(self: open3d.Theirs, size: typing.SupportsFloat = 1.0, kind: bool = False) -> None"""

    def member(self):
        pass


def test_the_comparison_sees_planted_differences():
    class Fewer:
        def __init__(self, size=1.0):
            pass

    class Otherwise:
        member = None

        def __init__(self, size=2.0, kind=False):
            pass

    class Same:
        member = None

        def __init__(self, size=1.0, kind=False):
            pass

    assert list(parity.differences(Theirs, Same)) == []
    assert list(parity.differences(Theirs, Fewer)) == ["member is missing", "takes (size) for (size, kind)"]
    assert list(parity.differences(Theirs, Otherwise)) == ["has 2.0 by default for size, and Open3D 1.0"]
