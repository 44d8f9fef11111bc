"""Pictures of stored series: windows, planes and overlays against numpy, hostile pixels, memory, lost files."""

import io
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dicom_node.web.viewer import decoding
from dicom_node.web.viewer.cache import ByteCache
from dicom_node.web.viewer.decoding import NotShown
from dicom_node.web.viewer.encode import FILL_ALPHA, outline_of, rgb_of_lab
from dicom_node.web.viewer.planes import HU, Plane, cut, windowed
from dicom_node.web.viewer.viewer import Place, SeriesChanged, Viewer
from inference.volume.arrange import decode_shown
from inference.volume.decoder_pool import POOL
from inference.volume.instances import Frame
from inference.volume.load import load
from storage.errors import NotFound
from storage.lost import mark_lost
from storage.models import instances
from tests.factories import chest, lungs, volume_of
from tests.factories import write_series as write_chest
from tests.programs import wait_for
from tests.s3 import S3
from tests.shown_series import GRID, Shown, report, reported, store_files
from tests.storage_factory import Store
from tests.unit.ct_series import noise, write_series
from tests.unit.test_decoding_process import PLANE, STREAM, WITHOUT_TABLE, lossless_jpegs

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def viewer(store: Store) -> Viewer:
    return Viewer(store.database, store.files, 64 * MIB)


def place(viewer: Viewer, series_pk: int, plane: Plane, index: int) -> Place:
    return Place(series_pk, viewer.open(series_pk).token, plane, index)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_window_is_dicoms_linear_function_rounded_half_up() -> None:
    hu = np.array([[-2000, -1350, -1100, -850, -849, -600, -350, 150, 3000, 32767, -32768]], np.int16)
    expected = [
        0
        if v <= -600 - 0.5 - 1499 / 2
        else 255
        if v > -600 - 0.5 + 1499 / 2
        else int(np.floor(((v + 600.5) / 1499 + 0.5) * 255 + 0.5))
        for v in hu[0].astype(int)
    ]
    assert windowed(hu, -600, 1500)[0].tolist() == expected
    assert windowed(np.array([39, 40], np.int16), 40, 1).tolist() == [0, 255]
    with pytest.raises(ValueError, match="at least 1 HU"):
        windowed(hu, 0, 0.5)


def test_each_plane_shows_the_voxels_of_the_analysis_the_head_above(store: Store, viewer: Viewer, tmp_path) -> None:
    stored = noise(7, 20, 24)
    heights = [3.0 * z for z in (4, 0, 6, 2, 1, 5, 3)]  # not in the order of the files
    paths = write_series(tmp_path / "sent", stored, heights)
    series_pk = store_files(store, paths)
    hu = load(paths).hu
    for plane, index, expected in (
        (Plane.AXIAL, 2, hu[2]),
        (Plane.CORONAL, 5, hu[::-1, 5]),
        (Plane.SAGITTAL, 9, hu[::-1, :, 9]),
    ):
        shown = pixels(viewer.picture(place(viewer, series_pk, plane, index), 1000, 3000))
        share = np.clip((expected - 999.5) / 2999 + 0.5, 0, 1)
        assert np.array_equal(shown, np.floor(share * 255 + 0.5).astype(np.uint8)), plane
        assert np.array_equal(viewer.hounsfield(place(viewer, series_pk, plane, index)), expected)


def test_proportions_sides_and_places_follow_the_header(store: Store, viewer: Viewer, tmp_path) -> None:
    series_pk = store_files(store, write_series(tmp_path / "sent", noise(5, 20, 24)))
    opened = viewer.open(series_pk)
    told = opened.describe()
    assert told["planes"]["axial"] == {
        "count": 5, "rows": 20, "columns": 24, "row_mm": 0.75, "column_mm": 0.5, "sides": ("R", "L", "A", "P"),
    }  # fmt: skip
    coronal, sagittal = told["planes"]["coronal"], told["planes"]["sagittal"]
    assert (coronal["row_mm"], coronal["column_mm"], coronal["sides"]) == (2.0, 0.5, ("R", "L", "H", "F"))
    assert (sagittal["row_mm"], sagittal["column_mm"], sagittal["sides"]) == (2.0, 0.75, ("A", "P", "H", "F"))
    assert np.array(told["affine"]) @ [3, 4, 2, 1] == pytest.approx([-100 + 1.5, -120 + 3, 4, 1])
    uids = [image["uid"] for image in told["images"]]
    assert uids == [item.sop_instance_uid for item in load(list((tmp_path / "sent").iterdir())).slices]
    assert opened.heights_mm() == [0, 2, 4, 6, 8]


def test_an_overlay_lies_on_the_voxels_of_its_segment_in_every_plane(store: Store, viewer: Viewer, tmp_path) -> None:
    series = reported(store, tmp_path / "sent")
    told = viewer.overlays(series.series_pk)
    assert [one["label"] for one in told] == ["Lungs", "What drove the model, no lesion boundary"]
    hu = chest(GRID)
    mask = (hu < -500) & (hu > -950)
    assert np.array_equal(mask, lungs(GRID))
    assert told[0]["largest"] == int(mask.sum(axis=(1, 2)).argmax())
    assert told[1]["largest"] == 4
    colour = tuple(bytes.fromhex(told[0]["colour"][1:]))
    for plane, index, expected in (
        (Plane.AXIAL, 4, mask[4]),
        (Plane.AXIAL, 0, mask[0]),
        (Plane.CORONAL, 15, mask[::-1, 15]),
        (Plane.SAGITTAL, 8, mask[::-1, :, 8]),
    ):
        png = viewer.overlay(place(viewer, series.series_pk, plane, index), told[0]["object"], 1)
        rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
        alpha = np.where(outline_of(expected), 255, np.where(expected, FILL_ALPHA, 0))
        assert np.array_equal(rgba[..., 3], alpha), plane
        assert not expected.any() or np.all(rgba[expected][:, :3] == colour)


def test_the_outline_is_what_touches_the_outside() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:6] = True
    inner = np.zeros_like(mask)
    inner[2:4, 2:5] = True
    assert np.array_equal(outline_of(mask), mask & ~inner)
    assert outline_of(np.ones((2, 2), bool)).all()


def test_a_colour_of_a_segment_is_shown_as_a_screen_has_it() -> None:
    assert rgb_of_lab(100, 0, 0) == (255, 255, 255)
    assert rgb_of_lab(0, 0, 0) == (0, 0, 0)
    assert rgb_of_lab(54.29, 80.81, 69.89) == pytest.approx((255, 0, 0), abs=2)  # red in D50


def test_images_that_form_no_volume_are_shown_one_by_one_with_the_reason(store: Store, viewer: Viewer, tmp_path):
    stored = noise(6)
    paths = write_series(tmp_path / "sent", stored, [0, 2, 4, 10, 12, 14])
    series_pk = store_files(store, paths)
    opened = viewer.open(series_pk)
    told = opened.describe()
    assert "2 slices are missing" in told["why_no_volume"]
    assert (told["planes"], told["affine"], len(told["images"])) == ({}, None, 6)
    assert opened.heights_mm() == [0, 2, 4, 10, 12, 14]
    assert np.array_equal(viewer.hounsfield(place(viewer, series_pk, Plane.AXIAL, 3)), stored[3] - 1024)
    affine = np.array(told["images"][3]["affine"])
    assert affine @ [4, 2, 1] == pytest.approx([-100 + 4 * 0.5, -120 + 2 * 0.75, 10])
    with pytest.raises(NotShown, match="missing"):
        viewer.picture(place(viewer, series_pk, Plane.CORONAL, 3), -600, 1500)


def test_what_cannot_be_decoded_says_so_and_the_other_images_are_shown(store: Store, viewer: Viewer, tmp_path):
    paths = write_series(tmp_path / "sent", noise(4))
    series_pk = store_files(store, paths)
    colour = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "SeriesInstanceUID": "2.25.2"}
    store_files(store, write_series(tmp_path / "more", noise(3)[None, 0], [6.0], **colour))
    first = store.rows("SELECT path FROM instances ORDER BY id")[0]["path"]
    stored = store.files.absolute(str(first))
    stored.write_bytes(stored.read_bytes()[:900])
    opened = viewer.open(series_pk)
    assert len(opened.frames) + len(opened.arrangement.unreadable) == 5
    shown = 0
    for index in range(len(opened.frames)):
        try:
            viewer.picture(place(viewer, series_pk, Plane.AXIAL, index), -600, 1500)
            shown += 1
        except NotShown as error:
            assert "cannot be shown" in str(error)
    assert shown == 3


def test_an_image_that_kills_its_decoder_says_so_and_is_not_tried_again(
    store: Store, viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series_pk = store_files(store, lossless_jpegs(tmp_path / "sent", [STREAM, WITHOUT_TABLE, STREAM]))
    bad = place(viewer, series_pk, Plane.AXIAL, 1)
    tries: list[Frame] = []
    monkeypatch.setattr(decoding, "decode_shown", lambda frame: tries.append(frame) or decode_shown(frame))
    for window in (1500, 1500, 400):
        with pytest.raises(NotShown, match=r"cannot be shown: .* ends the decoder"):
            viewer.picture(bad, -600, window)
    with pytest.raises(NotShown, match="ends the decoder"):
        viewer.picture(place(viewer, series_pk, Plane.CORONAL, 5), -600, 1500)
    assert [frame.position_mm[2] for frame in tries].count(2) == 1
    shown = viewer.hounsfield(place(viewer, series_pk, Plane.AXIAL, 2))
    assert np.array_equal(shown, PLANE.astype(int) - 1024)


def test_a_decoder_that_is_killed_at_work_costs_no_picture(store: Store, viewer: Viewer, tmp_path: Path) -> None:
    series_pk = store_files(store, lossless_jpegs(tmp_path / "sent", [STREAM] * 3))
    viewer.hounsfield(place(viewer, series_pk, Plane.AXIAL, 0))
    working = psutil.Process(POOL.pids()[-1])  # it takes the next image
    working.suspend()
    found: list[HU] = []
    at = place(viewer, series_pk, Plane.AXIAL, 1)
    asks = threading.Thread(target=lambda: found.append(viewer.hounsfield(at)))
    asks.start()
    wait_for(lambda: working.pid not in POOL.pids(), 30, "the image at the decoder")
    working.kill()
    asks.join(60)
    assert np.array_equal(found[0], PLANE.astype(int) - 1024)


def test_a_decoder_that_hangs_is_given_up_and_the_next_image_is_shown(
    store: Store, viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series_pk = store_files(store, lossless_jpegs(tmp_path / "sent", [STREAM] * 3))
    viewer.hounsfield(place(viewer, series_pk, Plane.AXIAL, 0))
    hanging = psutil.Process(POOL.pids()[-1])
    hanging.suspend()
    with monkeypatch.context() as patch:
        patch.setattr(POOL, "longest_s", 0.2)
        with pytest.raises(NotShown, match="ends the decoder"):
            viewer.hounsfield(place(viewer, series_pk, Plane.AXIAL, 1))
    assert not hanging.is_running()
    assert np.array_equal(viewer.hounsfield(place(viewer, series_pk, Plane.AXIAL, 2)), PLANE.astype(int) - 1024)


def test_two_compressed_images_are_decoded_at_once_and_others_do_not_wait_for_ever(
    store: Store, viewer: Viewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed = store_files(store, lossless_jpegs(tmp_path / "sent", [STREAM] * 3))
    plain = {"SeriesInstanceUID": "2.25.9", "StudyInstanceUID": "2.25.8"}
    native = store_files(store, write_series(tmp_path / "more", noise(3), **plain))
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(frame: Frame) -> HU:
        if frame.instance.pixels.rows == 64:
            begun.release()
            assert go_on.wait(60)
        return decode_shown(frame)

    monkeypatch.setattr(decoding, "decode_shown", slow)
    places = [place(viewer, compressed, Plane.AXIAL, z) for z in range(3)]
    threads = [threading.Thread(target=viewer.hounsfield, args=[one]) for one in places[:2]]
    for thread in threads:
        thread.start()
    assert begun.acquire(timeout=30) and begun.acquire(timeout=30)
    monkeypatch.setattr(decoding, "LONGEST_S", 0.1)
    with pytest.raises(NotShown, match="Too many images"):
        viewer.hounsfield(places[2])
    assert viewer.hounsfield(place(viewer, native, Plane.AXIAL, 0)).shape == (32, 40)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert viewer.hounsfield(places[2]).shape == (64, 64)  # that it had to wait is not kept


def test_files_that_are_gone_are_counted_by_reason(store: Store, viewer: Viewer, tmp_path) -> None:
    series_pk = store_files(store, write_series(tmp_path / "sent", noise(5)))
    before = viewer.open(series_pk)
    with store.database.transaction() as tx:
        mark_lost(tx, instances.c.id <= 2, "missing", 50.0)
    after = viewer.open(series_pk)
    assert after.describe()["gone"] == {"missing": 2}
    assert (len(after.frames), before.token == after.token) == (3, False)


def test_a_late_image_makes_the_browser_open_the_series_again(store: Store, tmp_path) -> None:
    paths = write_series(tmp_path / "sent", noise(5))
    series_pk = store_files(store, paths[:4])
    old = place(Viewer(store.database, store.files, MIB), series_pk, Plane.AXIAL, 0)
    store_files(store, paths[4:])
    with pytest.raises(SeriesChanged):
        Viewer(store.database, store.files, MIB).picture(old, -600, 1500)


def test_a_series_or_an_image_that_is_not_there_is_said(store: Store, viewer: Viewer, tmp_path) -> None:
    series_pk = store_files(store, write_series(tmp_path / "sent", noise(3)))
    with pytest.raises(NotFound):
        viewer.open(series_pk + 1)
    for index in (-1, 3):
        with pytest.raises(NotShown, match="no such image"):
            viewer.picture(place(viewer, series_pk, Plane.AXIAL, index), -600, 1500)
    with pytest.raises(NotFound):
        viewer.overlay(place(viewer, series_pk, Plane.AXIAL, 0), 7, 1)


def test_an_overlay_of_another_series_is_not_shown(store: Store, viewer: Viewer, tmp_path) -> None:
    series: Shown = reported(store, tmp_path / "sent")
    other = store_files(store, write_series(tmp_path / "other", noise(3)))
    with pytest.raises(NotFound):
        viewer.overlay(place(viewer, other, Plane.AXIAL, 0), viewer.overlays(series.series_pk)[0]["object"], 1)


def test_whatever_is_opened_the_memory_stays_below_its_bound(store: Store, tmp_path) -> None:
    viewer = Viewer(store.database, store.files, 300_000)
    for number in range(3):
        sent = write_series(
            tmp_path / str(number), noise(8, 100, 100), SeriesInstanceUID=f"2.25.7{number}", StudyInstanceUID="2.25.6"
        )
        series_pk = store_files(store, sent)
        for index in range(8):
            viewer.picture(place(viewer, series_pk, Plane.AXIAL, index), -600, 1500)
            assert viewer.cache.held_bytes <= 300_000
    opened = viewer.open(series_pk)
    assert not viewer.has_planes(opened)
    with pytest.raises(NotShown, match="too large"):
        viewer.picture(place(viewer, series_pk, Plane.CORONAL, 1), -600, 1500)


@pytest.mark.parametrize("plane", [Plane.CORONAL, Plane.SAGITTAL])
def test_cutting_a_volume_holds_few_of_its_slices_at_a_time(plane: Plane) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def slice_at(z: int) -> np.ndarray:
        nonlocal most
        made = np.full((30, 30), z, np.int16)
        alive.append(weakref.ref(made))
        most = max(most, sum(one() is not None for one in alive))
        return made

    assert cut(plane, 3, 20, slice_at)[:, 0].tolist() == list(range(19, -1, -1))
    assert most <= 2


def test_requests_for_one_thing_at_the_same_time_make_it_once() -> None:
    cache, made, begun, go_on = ByteCache(100), [], threading.Event(), threading.Event()

    def make() -> str:
        begun.set()
        go_on.wait(10)
        made.append(1)
        return "picture"

    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.append(cache.get("key", make, len))) for _ in range(4)]
    threads[0].start()
    assert begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert (got, len(made), cache.held_bytes) == (["picture"] * 4, 1, 7)


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    cache = ByteCache(100)
    with pytest.raises(NotShown):
        cache.get("key", lambda: (_ for _ in ()).throw(NotShown("no")), len)
    assert cache.get("key", lambda: "yes", len) == "yes"


def test_the_value_asked_for_last_stays_and_one_that_is_too_large_is_not_kept() -> None:
    cache = ByteCache(10)
    cache.get("a", lambda: "aaaa", len)
    cache.get("b", lambda: "bbbb", len)
    cache.get("a", lambda: "never", len)
    cache.get("c", lambda: "cccc", len)
    assert cache.get("a", lambda: "new", len) == "aaaa"
    assert cache.get("b", lambda: "new", len) == "new"
    assert len(cache.get("large", lambda: "x" * 11, len)) == 11
    assert cache.held_bytes <= 10


def test_the_first_look_is_the_image_that_the_viewer_begins_with(store: Store, viewer: Viewer, tmp_path) -> None:
    for count in (4, 5):
        sent = write_series(
            tmp_path / str(count),
            noise(count),
            SeriesInstanceUID=f"2.25.5{count}",
            StudyInstanceUID="2.25.5",
            InstanceNumber=lambda index, count=count: count - index,
        )
        series_pk = store_files(store, sent)
        opened = viewer.open(series_pk)
        begins = viewer.picture(Place(series_pk, opened.token, Plane.AXIAL, (count - 1) // 2), -600, 1500)
        assert viewer.first_look(series_pk, opened.token, -600, 1500) == begins
    with pytest.raises(SeriesChanged):
        viewer.first_look(series_pk, "0" * 16, -600, 1500)


def test_heat_lies_where_the_model_put_it_in_every_plane(store: Store, viewer: Viewer, tmp_path) -> None:
    write_chest(tmp_path / "sent", GRID)
    series_pk = store_files(store, sorted((tmp_path / "sent").iterdir()))
    heat = np.zeros(GRID.shape, np.uint8)
    heat[5, 8:24, 4:20] = 255
    report(store, volume_of(tmp_path / "sent"), 0.9, heat=heat)
    [told] = [one for one in viewer.overlays(series_pk) if "heat" in one["label"]]
    assert told["largest"] == 5

    def alpha(plane: Plane, index: int) -> np.ndarray:
        png = viewer.overlay(place(viewer, series_pk, plane, index), told["object"], told["segment"])
        return pixels(png)[..., 3]

    rows, columns = GRID.shape[1:]
    axial = alpha(Plane.AXIAL, 5)[:rows, :columns]
    assert axial[12:20, 8:16].min() == 200
    assert axial[:5].max() == axial[27:].max() == axial[:, 23:].max() == 0
    assert alpha(Plane.AXIAL, 4).max() == 0
    z = GRID.shape[0] - 1 - 5
    coronal, sagittal = alpha(Plane.CORONAL, 15), alpha(Plane.SAGITTAL, 12)
    assert coronal[z, 8:16].min() == 200
    assert sagittal[z, 12:20].min() == 200
    assert np.flatnonzero(coronal.max(axis=1)).tolist() == [z]
    assert alpha(Plane.CORONAL, 30).max() == 0


def test_images_in_a_bucket_are_shown_and_nothing_of_them_stays_lying_about(store: Store, tmp_path, s3: S3) -> None:
    store.files = s3.store(tmp_path / "local")  # type: ignore[assignment]
    stored = noise(5, 20, 24)
    series_pk = store_files(store, write_series(tmp_path / "sent", stored, InstanceNumber=lambda index: index + 1))
    viewer = Viewer(store.database, store.files, 64 * MIB)
    at = place(viewer, series_pk, Plane.CORONAL, 7)
    assert np.array_equal(viewer.hounsfield(at), (stored - 1024)[::-1, 7])
    assert viewer.first_look(series_pk, at.token, -600, 1500)[:4] == b"\x89PNG"
    assert [path for path in (tmp_path / "local" / "passing").rglob("*") if path.is_file()] == []


def test_a_file_that_vanishes_while_its_series_is_looked_at_is_missed_at_once(store, viewer, tmp_path) -> None:
    series_pk = store_files(store, write_series(tmp_path / "sent", noise(5, 8, 10)))
    before = viewer.open(series_pk)
    assert before.describe()["gone"] == {} and before.shapes
    uid = before.frames[2].instance.sop_instance_uid
    before.frames[2].instance.path.unlink()
    with pytest.raises(SeriesChanged):
        viewer.picture(Place(series_pk, before.token, Plane.AXIAL, 2), -600, 1500)
    after = viewer.open(series_pk)
    assert after.describe()["gone"] == {"missing": 1}
    assert uid not in [image["uid"] for image in after.describe()["images"]]
    assert after.token != before.token  # no picture of the others is taken for its former neighbour
    for index in range(4):
        expected = decode_shown(after.frames[index])
        assert np.array_equal(viewer.hounsfield(Place(series_pk, after.token, Plane.AXIAL, index)), expected)
    with pytest.raises(SeriesChanged):
        viewer.picture(Place(series_pk, before.token, Plane.AXIAL, 4), -600, 1500)
    after.frames[0].instance.path.unlink()
    viewer.cache.forget(("slice", series_pk, after.token, 0))
    with pytest.raises(SeriesChanged):
        viewer.picture(Place(series_pk, after.token, Plane.AXIAL, 0), -600, 1500)
    assert viewer.open(series_pk).gone == {"missing": 2}


def test_one_file_that_is_missing_in_a_bucket_costs_one_image(store: Store, tmp_path, s3: S3) -> None:
    store.files = s3.store(tmp_path / "local")  # type: ignore[assignment]
    series_pk = store_files(store, write_series(tmp_path / "sent", noise(4, 20, 24)))
    store.files.remove(str(store.rows("SELECT path FROM instances ORDER BY id")[0]["path"]))
    opened = Viewer(store.database, s3.store(tmp_path / "another"), 64 * MIB).open(series_pk)
    assert (len(opened.frames), opened.gone) == (3, {"missing": 1})


def test_few_series_are_opened_before_anybody_asks_for_their_pictures(store: Store, viewer: Viewer, monkeypatch):
    store.receive(1, now=1.0)
    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(_series_pk: int) -> None:
        begun.release()
        go_on.wait(30)

    monkeypatch.setattr(viewer, "open", slow)
    for _ in range(5):
        viewer.open_soon(1)
    assert begun.acquire(timeout=30)
    assert begun.acquire(timeout=30)
    assert not begun.acquire(blocking=False)
    assert sum(thread.name == "open series" for thread in threading.enumerate()) == 2
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "open series":
            thread.join(30)
    viewer.open_soon(1)
    assert begun.acquire(timeout=30)


def test_nobody_waits_for_ever_for_what_cannot_be_measured():
    cache, begun, go_on, ended = ByteCache(100), threading.Event(), threading.Event(), []

    def make():
        begun.set()
        go_on.wait(10)

    def ask():
        with pytest.raises(TypeError):
            cache.get("key", make, len)
        ended.append(True)

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    askers[0].start()
    assert begun.wait(10)
    askers[1].start()
    time.sleep(0.2)
    go_on.set()
    for asker in askers:
        asker.join(10)
    assert ended == [True, True]


MANY_PEOPLE = """
import threading, numpy as np, psutil
from dicom_node.cli.web import _give_memory_back
from dicom_node.web.viewer.cache import ByteCache
_give_memory_back()
cache, others, before = ByteCache(64 << 20), [], psutil.Process().memory_info().rss
def look(person):
    for n in range(100):
        read = np.ones(260_000 + 7 * n, np.int16)
        cache.get((person, n), lambda: read + 1, lambda made: made.nbytes)
        others.append(bytes(600 + n % 50))
people = [threading.Thread(target=look, args=(number,)) for number in range(12)]
for one in people: one.start()
for one in people: one.join()
print((psutil.Process().memory_info().rss - before) >> 20)
"""


def test_what_the_cache_lets_go_returns_to_the_system() -> None:
    """Without it glibc keeps several times as much, in a heap for each thread."""
    done = subprocess.run([sys.executable, "-c", MANY_PEOPLE], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 2 * 64
