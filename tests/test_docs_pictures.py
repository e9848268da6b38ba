"""The documents' pictures: each is drawn by a script, and what their captions say is what they show."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
from conftest import ROOT

ELSEWHERE = {
    "frequency.png": "docs/extending.md",  # the page's own code draws it
    "landscape.png": "docs/study.md",  # tools/landscape.py, with the command beside the picture
    "landscape-softicp.png": "docs/study.md",
    "photographs-curves.png": "docs/alignment.md",  # tools/study_pictures.py, likewise
    "photographs-landscape.png": "docs/alignment.md",
    "pixels-curves.png": "docs/sequences.md",
    "pixels-landscape.png": "docs/sequences.md",
    "verdict-risk.png": "docs/verdict.md",  # tools/risk_coverage.py
    "verdict-risk-viewpoints.png": "docs/verdict.md",
}
COMMANDS = ("savefig(", "tools/landscape.py", "tools/study_pictures.py", "tools/risk_coverage.py")


@pytest.fixture
def pictures(monkeypatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import docs_pictures

    return docs_pictures


def test_every_picture_is_made_by_a_script(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["docs_pictures.py", "--out", str(tmp_path)])
    pictures.main()
    made = {path.name for path in tmp_path.iterdir()}
    assert made | set(ELSEWHERE) == {path.name for path in (ROOT / "docs" / "images").iterdir()}
    for name, page in ELSEWHERE.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert f"images/{name}" in text and any(command in text for command in COMMANDS)
    again = (tmp_path / "frames.svg").read_bytes()
    pictures.main()
    assert (tmp_path / "frames.svg").read_bytes() == again


def test_the_picture_of_fitness_shows_what_its_caption_says(pictures):
    title = pictures.fitness().axes[0].get_title()
    assert title.startswith("10 of 12 source points") and "fitness 0.83" in title
    caption = re.search(
        r"!\[(.*?)\]\(images/fitness\.svg\)", (ROOT / "docs" / "fitness.md").read_text(encoding="utf-8")
    )
    assert caption[1].startswith("Twelve source points") and "ten have a target point" in caption[1]
