"""The report's page in a browser: that it draws, with WebGL and without, on screens and on paper."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import HOSTILE, Page, count_colours, make

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a headless Chromium (apt install chromium)"),
]
FLAGS = """
    --headless=new --no-sandbox --disable-gpu --use-angle=swiftshader --enable-unsafe-swiftshader --disable-quic
    --no-first-run --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
""".split()  # noqa: SIM905


class Browser:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _run(self, page: Path, *options: str) -> str:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={self.folder / 'profile'}", "--virtual-time-budget=10000"]
        done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, timeout=240)
        return done.stdout.decode(errors="replace")

    def dom(self, page: Path, *options: str) -> str:
        return self._run(page, "--dump-dom", *options)

    def shot(self, page: Path, width: int, height: int, *options: str) -> Image.Image:
        path = self.folder / "shot.png"
        self._run(page, f"--screenshot={path}", f"--window-size={width},{height}", *options)
        return Image.open(path)


@pytest.fixture
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("chromium"))


# What Tab stops at; then, after each key on the view "after", the pose of all views and the button that is pressed.
KEYS = """
<title></title><iframe src=page.html style="width:900px;height:900px"></iframe><script>
const frame = document.querySelector("iframe"), said = { stops: [], pressed: [], views: [] };
frame.onload = async () => {
  const page = frame.contentDocument, canvas = page.getElementById("after");
  const name = (e) => e.dataset.view || e.dataset.zoom || e.id || e.localName;
  said.stops = [...page.querySelectorAll("button, summary, [tabindex]")].map(name);
  const look = async () => {
    await new Promise((done) => setTimeout(done, 500));
    said.views.push(page.documentElement.dataset.view);
    const button = page.querySelector('[aria-pressed="true"]');
    said.pressed.push(button && button.dataset.view);
  };
  await look();
  for (const [key, shiftKey] of KEYS) {
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey }));
    await look();
  }
  document.title = JSON.stringify(said);
};
</script>"""


def root_attributes(dom: str) -> dict[str, str | None]:
    return dict(Page(re.sub(r"<script.*?</script>", "", dom, flags=re.S)).tags[0][1])


class TestBrowser:
    pytestmark = browser

    def test_page_draws(self, tmp_path: Path, chromium: Browser) -> None:
        page = make(names=(HOSTILE, "b")).report(tmp_path / "page.html")
        dom = chromium.dom(page)
        attributes = root_attributes(dom)
        assert attributes["data-scenes"] == "3"
        assert "data-error" not in attributes and "data-violation" not in attributes
        assert f"aligned: {html.escape(HOSTILE, quote=False)} onto b" in dom  # the title, neither run nor replaced
        markup = Page(re.sub(r"<script.*?</script>", "", dom, flags=re.S))
        assert all(not address or address.startswith(("data:", "blob:", "#")) for address in markup.addresses)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_pixels_are_drawn(self, tmp_path: Path, chromium: Browser, scheme: str) -> None:
        page = make().report(tmp_path / "page.html")
        options = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        image = chromium.shot(page, 1200, 1300, *options)
        corner = image.convert("L").getpixel((2, 2))
        assert corner < 60 if scheme == "dark" else corner > 200
        for left in (0, 600):  # before, after
            orange, blue = count_colours(image.crop((left, 330, left + 600, 780)))
            assert orange > 2000 and blue > 2000
        heat = np.asarray(image.crop((0, 940, 600, 1300)).convert("RGB"), dtype=int).reshape(-1, 3)
        assert len(np.unique(heat // 32, axis=0)) > 20  # a colour map, not a flat panel

    def test_page_without_webgl_or_history_shows_the_picture(self, tmp_path: Path, chromium: Browser) -> None:
        result = make()
        result.history = []
        page = result.report(tmp_path / "page.html")
        dom = chromium.dom(page, "--disable-3d-apis")
        attributes = root_attributes(dom)
        assert attributes["data-scenes"] == "0" and "data-error" not in attributes
        assert "drawing" not in (attributes.get("class") or "")
        assert "No iterations were recorded" in dom
        orange, blue = count_colours(chromium.shot(page, 1200, 1000, "--disable-3d-apis"))
        assert orange > 2000 and blue > 2000

    def test_narrow_page_does_not_scroll_sideways(self, tmp_path: Path, chromium: Browser) -> None:
        make(names=("a" * 80 + ".ply", "b")).report(tmp_path / "page.html")
        frame = tmp_path / "frame.html"
        frame.write_text(
            "<iframe src=page.html style='width:360px;height:900px'></iframe><script>"
            "const frame = document.querySelector('iframe'); frame.onload = () => setTimeout(() => {"
            "const root = frame.contentDocument.documentElement;"
            "document.title = root.scrollWidth + ' of ' + root.clientWidth }, 4000)</script>"
        )
        dom = chromium.dom(frame, "--allow-file-access-from-files")
        needs, has = map(int, re.search(r"<title>(\d+) of (\d+)</title>", dom).groups())
        assert has <= 360 and needs <= has

    def test_keys_and_buttons_turn_all_views(self, tmp_path: Path, chromium: Browser) -> None:
        make().report(tmp_path / "page.html")
        keys = [("ArrowRight", False), ("ArrowUp", True), ("+", False), ("Home", False)]
        (tmp_path / "frame.html").write_text(KEYS.replace("KEYS", json.dumps(keys)))
        dom = chromium.dom(tmp_path / "frame.html", "--allow-file-access-from-files")
        said = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom)[1]))
        stops, pressed, views = said["stops"], said["pressed"], said["views"]
        names = ["start", "x", "y", "z", "0.8", "1.25", "before", "after", "heat", "copy", "matrix"]
        assert stops == [*names, *["summary"] * 4]
        start, turned, moved, larger, home = views
        assert len({start, turned, moved, larger}) == 4 and home == start
        assert pressed == ["start", None, None, None, "start"]

    def test_page_prints(self, tmp_path: Path, chromium: Browser) -> None:
        page = make().report(tmp_path / "page.html")
        chromium._run(page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
        assert b"/Image" in (tmp_path / "page.pdf").read_bytes()  # the still stands in for the scenes
