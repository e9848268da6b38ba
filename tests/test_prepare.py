"""`prepare`: the same bytes as `register`, with the target's part of the work done once."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from registering import pose, same_bytes, thin

import dlc_reg
from dlc_reg import InputError, api
from dlc_reg.registration import icp
from dlc_reg.registration.global_search import Thinned


@pytest.fixture(scope="module")
def scans(bunny_pair):
    """Of about 1500 points each: one smaller than the target, one denser, which leads to another voxel size."""
    return [bunny_pair.source[::27], bunny_pair.source[::4], thin(bunny_pair.source, 1500, seed=1)]


@pytest.fixture(scope="module")
def target(bunny_pair):
    return bunny_pair.target[::20]


OPTIONS = [
    {},
    {"method": "global", "voxel_size": 0.01},
    {"method": "learned"},
    {"method": "point_to_point"},
    {"method": "point_to_plane", "max_correspondence_distance": 0.02},
    {"method": "symmetric"},
    {"method": "generalized"},
    {"with_scaling": True},
    {"target_viewpoint": (0.0, 0.0, 1.0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_bytes_as_register_scan_after_scan(scans, target, options):
    """Twice round: first each voxel size is new, then what is kept of the target serves."""
    prepared = dlc_reg.prepare(target, num_threads=1, **options)
    init = None if "method" not in options else pose([0, 1, 0], 40)
    for scan in [*scans, *scans]:
        given = {"init": init, "source_viewpoint": (0.0, 0.0, 1.0) if "target_viewpoint" in options else None}
        once = prepared.register(scan, **given)
        fresh = dlc_reg.register(scan, target, num_threads=1, **options, **given)
        same_bytes(once, fresh)
        assert once.settings == fresh.settings and once.clouds[1] is prepared.target


@pytest.fixture
def work(monkeypatch):
    """How many points were made ready at what voxel size, in each of the two preparations."""
    done: list[tuple[str, int, float]] = []
    thinned, level = Thinned.prepare, icp._thinned

    def counting_thinned(cloud, voxel, **options):
        done.append(("search", len(cloud), voxel))
        return thinned(cloud, voxel, **options)

    def counting_level(cloud, voxel, needs, num_threads):
        done.append(("refine", len(cloud), voxel))
        return level(cloud, voxel, needs, num_threads)

    monkeypatch.setattr(Thinned, "prepare", counting_thinned)
    monkeypatch.setattr(icp, "_thinned", counting_level)
    return done


def test_the_target_is_worked_on_once_for_one_voxel_size(scans, target, work):
    prepared = dlc_reg.prepare(target, voxel_size=0.01)
    prepared.register(scans[0])
    first = [what for what in work if what[1] == len(target)]
    assert {kind for kind, *_ in first} == {"search", "refine"}
    prepared.register(scans[2])
    assert [what for what in work if what[1] == len(target)] == first
    assert {kind for kind, count, _ in work if count == len(scans[2])} == {"search", "refine"}


def test_another_voxel_size_is_made_anew_and_few_are_kept(scans, target, work):
    prepared = dlc_reg.prepare(target)
    for scale in (1.0, 1.2, 1.4, 1.6, 1.8, 2.0):
        prepared.register(scans[0] * scale)
    sizes = {voxel for kind, count, voxel in work if kind == "search" and count == len(target)}
    assert len(sizes) > api.THINNED_KEPT
    assert prepared._thinned.cache_info().currsize == api.THINNED_KEPT
    assert prepared._levels.thinned.cache_info().currsize <= icp._LEVELS_KEPT


def test_threads_share_one_target(scans, target):
    expected = [dlc_reg.register(scan, target, num_threads=1) for scan in scans]
    prepared = dlc_reg.prepare(target, num_threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(prepared.register, scans * 4))
    for result, known in zip(found, expected * 4, strict=True):
        same_bytes(result, known)


def test_pickles_as_its_points_and_options(scans, target):
    prepared = dlc_reg.prepare(target, voxel_size=0.01, num_threads=1)
    unused = len(pickle.dumps(prepared))
    result = prepared.register(scans[0])
    dumped = pickle.dumps(prepared)
    assert len(dumped) < 1.2 * unused
    same_bytes(pickle.loads(dumped).register(scans[0]), result)


def test_a_cloud_is_freed_with_its_target(target):
    """At once, without the garbage collector: a loop over large clouds would fill the memory before it ran."""
    import gc
    import weakref

    gc.disable()
    try:
        prepared = dlc_reg.prepare(target)
        prepared.register(target)
        cloud = weakref.ref(prepared.target)
        del prepared
        assert cloud() is None
    finally:
        gc.enable()


def test_callback_stops_and_progress_shows(scans, target, capsys):
    result = dlc_reg.prepare(target).register(scans[0], callback=lambda record: True, progress=True)
    assert result.status is dlc_reg.Status.STOPPED
    assert "|" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"method": "nonsense"}, "method"),
        ({"voxel_size": -1.0}, "voxel_size"),
        ({"max_correspondence_distance": np.nan}, "max_correspondence_distance"),
        ({"method": "symmetric", "with_scaling": True}, "method"),
        ({"num_threads": 0}, "num_threads"),
        ({"seed": -1}, "seed"),
        ({"device": "cuda"}, "device"),
        ({"target_viewpoint": (1, 2)}, "target_viewpoint"),
    ],
)
def test_bad_options_are_refused_at_once(target, options, argument):
    with pytest.raises(InputError) as caught:
        dlc_reg.prepare(target, **options)
    assert caught.value.argument == argument


def test_bad_clouds_are_refused(target):
    with pytest.raises(InputError, match="target: got an empty cloud"):
        dlc_reg.prepare(np.zeros((0, 3)))
    prepared = dlc_reg.prepare(target, voxel_size=0.01)
    for argument, given in (
        ("source", {"source": np.zeros((0, 3))}),
        ("init", {"source": target, "init": np.zeros((4, 4))}),
        ("callback", {"source": target, "callback": 3}),
        ("source_viewpoint", {"source": target, "source_viewpoint": (1,)}),
        ("source, target", {"source": target * 1000}),
        ("voxel_size", {"source": target / 10}),
    ):
        with pytest.raises(InputError) as caught:
            prepared.register(**given)
        assert caught.value.argument == argument
