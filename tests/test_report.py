"""The page and the picture: what they hold, and that a browser draws them."""

from __future__ import annotations

import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dlc_reg import _report_charts, _report_page, _report_picture, report
from dlc_reg._report_scene import build_scene
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud, apply_transform
from dlc_reg.iterate import Status
from dlc_reg.registration.result import RegistrationResult, Verdict

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{style}}&amp;.ply"


def turn(degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, shift[0]], [s, c, 0, shift[1]], [0, 0, 1, shift[2]], [0, 0, 0, 1]])


TRUTH = turn(40, (0.3, -0.2, 0.1))


def surface(n: int, seed: int) -> np.ndarray:
    x, y = np.random.default_rng(seed).uniform(-1, 1, (2, n))
    return np.column_stack([x, y, 0.3 * np.sin(3 * x) * np.cos(2 * y) + 0.2 * x * y])


def make(
    source: Any = None, target: Any = None, transformation: np.ndarray = TRUTH, names: tuple[str, str] = ("a", "b")
) -> RegistrationResult:
    """A result over two samplings of one surface; the target lacks x > 0.5."""
    if source is None:
        source = surface(3000, 0)
    if target is None:
        sheet = surface(4000, 1)
        target = apply_transform(TRUTH, sheet[sheet[:, 0] < 0.5])
    clouds = tuple(PointCloud.from_any(points, name=name) for points, name in zip((source, target), names, strict=True))
    return RegistrationResult(
        transformation=transformation,
        fitness=0.76,
        inlier_rmse=0.021,
        iterations=12,
        status=Status.CONVERGED,
        history=[
            {"voxel_size": voxel, "fitness": 0.3 + 0.04 * i, "inlier_rmse": (voxel + 0.01) / (i + 1)}
            for voxel in (0.08, 0.04, 0.0)
            for i in range(4)
        ],
        verdict=Verdict.ALIGNED,
        verdict_reasons=["76% of the source lies on the target", "all starts agree"],
        settings={"voxel_size": 0.04, "max_correspondence_distance": 0.12, "seed": 0, "levels": [0.08, 0.04]},
        timings={"search": 0.25, "refine": 0.5},
        clouds=clouds,
    )


class Page(HTMLParser):
    """What a page's markup holds: visible text by element id, every address, every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._raw = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def addresses(self) -> list[str]:
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in ("src", "href")]


# --- the scene -------------------------------------------------------------------------------------------------------
def test_scene_is_a_deterministic_subsample() -> None:
    result = make()
    one, two = build_scene(result, 500), build_scene(result, 500)
    assert len(one.before) == len(one.after) == len(one.target) == len(one.residuals) == 500
    assert one.totals == (3000, len(result.clouds[1]))
    for name in ("before", "after", "target", "residuals", "after_shade"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert len(build_scene(result, 10**6).after) == 3000


def test_scene_residuals_are_distances_to_the_target() -> None:
    result = make()
    scene = build_scene(result)
    source, target = (cloud.to_absolute() for cloud in result.clouds)
    moved = apply_transform(result.transformation, source)
    truth = np.array([np.sqrt(((point - target) ** 2).sum(axis=1)).min() for point in moved[:200]])
    np.testing.assert_allclose(scene.residuals[:200], truth, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 6e6])
def test_scene_keeps_its_accuracy_far_from_the_origin(offset: float) -> None:
    far = np.array([offset, -offset, offset / 2])
    source = surface(500, 0) + far
    transformation = TRUTH.copy()
    transformation[:3, 3] += far - TRUTH[:3, :3] @ far
    result = make(source, apply_transform(transformation, source), transformation)
    assert build_scene(result).residuals.max() < 1e-6


def test_clouds_that_start_far_apart_are_drawn_side_by_side_and_said_so() -> None:
    near, far = build_scene(make()), build_scene(make(source=surface(500, 0) + np.array([2e4, 0, 0])))
    assert near.gap is None and "apart" not in _report_page.scene_note(near)
    assert far.gap == pytest.approx(2e4, rel=0.01)
    assert "20,000 apart" in _report_page.scene_note(far)
    assert np.ptp(np.concatenate([far.before, far.target]), axis=0).max() < 10


def test_view_is_a_frame_and_looks_from_the_sensor() -> None:
    scene = build_scene(make())
    np.testing.assert_allclose(
        [scene.view @ scene.view, scene.up @ scene.up, scene.view @ scene.up], [1, 1, 0], atol=1e-9
    )
    result = make()
    below = replace(result.clouds[1], viewpoint=np.array([0.0, 0, -9]))
    result.clouds = (result.clouds[0], below)
    assert build_scene(result).view[2] < 0 < scene.view[2]


def test_result_without_clouds_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dlc_reg\.register"):
        RegistrationResult().report(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


# --- the page --------------------------------------------------------------------------------------------------------
def test_page_says_everything(tmp_path: Path) -> None:
    result = make()
    result.covariance = np.diag([1e-4, 4e-4, 9e-4, 0.01, 0.04, 0.09])
    assert result.report(tmp_path / "page.html") == tmp_path / "page.html"
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    for words in (
        "a onto b",
        "✓ aligned the pose can be trusted",
        "76% of the source lies on the target",
        "all starts agree",
        f"In the end: {Status.CONVERGED.value}.",
        "Rotation 40.00°",
        "Fitness 76.0%",
        "Inlier RMSE 0.021",
        "Time 0.75 s",
        "Drawn: 3,000 of 3,000 source points",
        "40.0000° about (0, 0, 1)",
        "(0.3, -0.2, 0.1), length 0.3742",
        "(0.573, 1.146, 1.719)° about x, y, z",
        "(0.1, 0.2, 0.3) along x, y, z",
        "0.08, 0.04",
        "search 0.250 s",
        f"numpy {np.__version__}",
        "in the points’ unit",
    ):
        assert words in page.words, words
    matrix = re.search(r'<pre id="matrix"[^>]*>(.*?)</pre>', (tmp_path / "page.html").read_text(encoding="utf-8"), re.S)
    np.testing.assert_array_equal(np.loadtxt(io.StringIO(html.unescape(matrix[1]))), TRUTH)


def test_page_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    text = make().report(tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(address.startswith("data:") for address in page.addresses), page.addresses
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe-eval" not in policy
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert "url(" not in style[1] and "@import" not in style[1]


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    result = make(names=(HOSTILE, HOSTILE))
    result.verdict_reasons = [HOSTILE]
    result.settings = {HOSTILE: HOSTILE, "nested": {"list": [HOSTILE]}}
    result.timings = {HOSTILE: 1.0}
    page = Page(result.report(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 2 and [tag for tag, _ in page.tags].count("img") == 3
    assert page.words.count(HOSTILE) >= 6  # shown as it is


def test_verdict_is_told_without_colour(tmp_path: Path) -> None:
    for verdict, sign in ((Verdict.FAILED, "✕"), (Verdict.DOUBTFUL, "?"), (Verdict.AMBIGUOUS, "?")):
        result = make()
        result.verdict = verdict
        words = Page(result.report(tmp_path / f"{verdict}.html").read_text(encoding="utf-8")).words
        assert f"{sign} {verdict.value}" in words
    result.verdict, result.verdict_reasons = None, []
    words = Page(result.report(tmp_path / "none.html").read_text(encoding="utf-8")).words
    assert f"· none {Status.CONVERGED.value}" in words


def test_verdict_comes_first_and_its_reasons_second(tmp_path: Path) -> None:
    text = make().report(tmp_path / "page.html").read_text(encoding="utf-8")
    words = Page(text[text.index("<body>") :]).words
    assert words.startswith("✓ aligned the pose can be trusted 76% of the source lies on the target all starts agree")


def test_nothing_with_a_counterpart_still_fills_the_page(tmp_path: Path) -> None:
    result = make(source=surface(500, 0) + np.array([0, 0, 9.0]))
    result.fitness, result.status = 0.0, Status.NO_CORRESPONDENCES
    result.history = [{"voxel_size": 0.08, "fitness": 0.0, "inlier_rmse": 0.0}]
    text = result.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Inlier RMSE none" in Page(text).words and f"No iterations were recorded; {result.status.value}" in text
    assert text.count("<rect") > 1 and "(grey)" not in text  # all distances, as none is below the limit


def test_page_stays_below_five_megabytes_whatever_the_clouds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(100_000, 3)) for _ in range(2)]  # nothing in it can be compressed
    assert make(*noise).report(tmp_path / "page.html").stat().st_size < 5e6


def test_existing_page_is_kept_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        make().report(path)
    assert path.read_text() == "precious"
    assert make().report(str(path), overwrite=True).read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_failure_on_the_way_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    monkeypatch.setattr(report, "page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make().report(path, overwrite=True)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_missing_extra_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "dlc_reg\[viz\]"'):
        make().plot(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []
    make().report(tmp_path / "page.html")  # the page needs none


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 40.0, 179.999, 180.0])
def test_rotation_axis(degrees: float) -> None:
    axis = np.array([2.0, -1, 2]) / 3
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    rotation = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    found = _report_page.rotation_axis(1.7 * rotation)
    if degrees == 180:
        found = found * np.sign(found @ axis)
    np.testing.assert_allclose(found, 0 if degrees == 0 else axis, atol=1e-6)


# --- the picture -----------------------------------------------------------------------------------------------------
def test_plot_draws_both_clouds_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    result = make()
    result.verdict_reasons = ["costs $5 and $6: <b>"]  # no mathematics, no markup
    figure = result.plot(tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == settings and matplotlib.get_backend() == backend and plt.get_fignums() == []
    words = [text.get_text() for text in figure.texts]
    assert words[:2] == ["✓ ALIGNED", "costs $5 and $6: <b>"]
    assert words[-2:] == ["● source: a", "● target: b"]
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
    picture = Image.open(tmp_path / "x.png")
    left, right = (
        picture.crop((half * picture.width // 2, 0, (half + 1) * picture.width // 2, picture.height)) for half in (0, 1)
    )
    for half in (left, right):
        orange, blue = count_colours(half)
        assert orange > 2000 and blue > 2000


@pytest.mark.parametrize("suffix", ["pdf", "svg", "jpg"])
def test_plot_writes_other_formats(tmp_path: Path, suffix: str) -> None:
    make().plot(tmp_path / f"x.{suffix}")
    assert (tmp_path / f"x.{suffix}").stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 1


def count_colours(image: Image.Image) -> tuple[int, int]:
    """Pixels that are clearly orange, and clearly blue."""
    red, _, blue = np.asarray(image.convert("RGB"), dtype=int).transpose(2, 0, 1)
    return int((red - blue > 70).sum()), int((blue - red > 70).sum())


# --- charts and stills -----------------------------------------------------------------------------------------------
def test_histogram_shows_every_point_once() -> None:
    residuals = np.random.default_rng(0).gamma(2, 0.01, 5000).astype(np.float32)
    chart = _report_charts.histogram(residuals, 0.05, 0.04)
    shares = [float(share) for share in re.findall(r"<title>([\d.]+)% between", chart)]
    beyond = float(re.search(r"([\d.]+)% farther away", chart)[1])
    assert beyond == pytest.approx(100 * np.mean(residuals >= 0.05), abs=0.05)
    assert sum(shares) + beyond == pytest.approx(100, abs=0.05 * len(shares))


def test_curves_skip_what_is_no_number_and_break_between_voxel_sizes() -> None:
    history = [
        {"voxel_size": 2.0, "inlier_rmse": 0.5},
        {"voxel_size": 2.0, "inlier_rmse": float("nan")},
        {"voxel_size": 2.0, "inlier_rmse": None},
        {"voxel_size": 0.0, "inlier_rmse": 0.25},
        {"voxel_size": 0.0},
    ]
    chart = _report_charts.curves(history, "inlier_rmse", "Inlier RMSE")
    assert chart.count("<polyline") == 2 and chart.count('class="between"') == 1
    assert re.findall(r"step (\d): ([\d.]+)", chart) == [("1", "0.5"), ("4", "0.25")]
    assert "nan" not in chart and "from 0.5 to 0.25" in chart


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.booleans())
def test_ticks_are_few_round_and_inside(low: float, width: float, whole: bool) -> None:
    high = low + width
    found = _report_charts.ticks(low, high, whole)
    assert len(found) <= 7
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in found)
    if len(found) > 1:
        step = found[1] - found[0]
        assert round(step / 10 ** np.floor(np.log10(step * 1.0001)), 3) in (1, 2, 5)
        assert not whole or step >= 1 - 1e-9


def test_picture_has_near_dots_over_far_ones_and_is_clear_elsewhere() -> None:
    painted = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0]], np.uint8)
    points = np.array([[0, 0, 1], [0, 0, 0], [4, 2, 0]], np.float32)  # red before blue, seen from +z
    image = _report_picture.picture(points, painted, np.array([0, 0, 1.0]), np.array([0, 1.0, 0]), (200, 100))
    opaque = image[image[..., 3] == 255]
    assert len(image) == 100 and {tuple(colour[:3]) for colour in opaque} == {(255, 0, 0), (0, 255, 0)}
    rows, columns = np.nonzero(image[..., 3])
    assert rows.min() >= 0 and np.ptp(columns) > 150 and np.mean(image[..., 3] == 0) > 0.9
    red = np.nonzero((image[..., 0] > 200) & (image[..., 3] > 0))
    assert red[0].mean() > 50 and red[1].mean() < 100  # below and to the left of the green one


def test_png_is_what_other_readers_read() -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 4)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(_report_picture.png(image)))), image)


def test_colours_of_a_ramp() -> None:
    ramp = ("#000000", "#ff0000", "#ffff00")
    found = _report_picture.colours(ramp, np.array([0, 0.5, 1, 0.75, np.nan], np.float32))
    np.testing.assert_array_equal(found, [[0, 0, 0], [255, 0, 0], [255, 255, 0], [255, 128, 0], [140, 148, 157]])
    assert _report_picture.hexadecimal(ramp, 2.0) == "#ffff00"
