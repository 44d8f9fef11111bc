"""Reading ahead: what is decoded early is what would be decoded late, in bounded memory, and no job pays for it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_node.analysis import read_ahead
from dicom_node.analysis.read_ahead import ReadAhead
from dicom_node.report.person import examined, stated
from inference.volume.load import DecodedFile, decode, load
from storage import job_takeover, recording
from storage.arrival import Arrival, IndexedHeader
from storage.pseudonyms import Pseudonyms
from tests.lossless_jpeg import encode as lossless_jpeg
from tests.programs import wait_for
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, LEASE_S, QUIET_S, Store
from tests.unit.ct_series import enhanced_dataset, noise, save, slice_dataset, write_series

SLICE_BYTES = 32 * 40 * 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def receive(store: Store, series_uid: str, slices: int = 4, now: float = 0.0) -> list[Path]:
    """A series of real slices arrives. Returns its stored files."""
    arrivals = []
    for number, path in enumerate(write_series(store.folder / series_uid, noise(slices), SeriesInstanceUID=series_uid)):
        file = store.files.write_durably([path.read_bytes()])
        header = IndexedHeader(patient_id="P1", modality="CT", instance_number=str(number))
        uid = f"{series_uid}.{number}"
        arrivals.append(Arrival(uid, CT_IMAGE, series_uid, "1.2", EXPLICIT_LE, "CT", "NODE", "", file, header))
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, QUIET_S)
    return [store.files.absolute(arrival.file.path) for arrival in arrivals]


def reader(store: Store, slices: int = 100) -> ReadAhead:
    return ReadAhead(store.database, store.files, slices * SLICE_BYTES)


def taken(store: Store, ahead: ReadAhead) -> dict[Path, DecodedFile]:
    """What was decoded of the first series, by file."""
    return {store.files.absolute(path): file.decoded for path, file in ahead.take(1, attempt=1).items()}


def read_all(ahead: ReadAhead) -> None:
    while ahead.step():
        pass


def test_slices_of_an_open_series_are_decoded_as_they_arrive_and_give_the_same_volume(store: Store) -> None:
    paths, ahead = receive(store, "1.5"), reader(store)
    read_all(ahead)
    found = taken(store, ahead)
    assert set(found) == set(paths)
    digest = load(paths).digest()
    for path in paths:  # the pixels are not read again: with other ones in the files the volume is the same
        path.write_bytes(path.read_bytes()[:-SLICE_BYTES] + bytes(SLICE_BYTES))
    assert load(paths, decoded=found).digest() == digest != load(paths).digest()
    for path in paths:  # nor are the headers
        path.unlink()
    assert load(paths, decoded=found).digest() == digest


def test_slices_that_were_decoded_give_the_same_volume_where_their_files_lie_elsewhere_now(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", noise(4), SeriesInstanceUID="1.5")
    before = [decode(path, SLICE_BYTES) for path in paths]
    moved = [path.rename(path.with_name(f"{number}.moved")) for number, path in enumerate(paths)]
    volume = load(moved, decoded=dict(zip(moved, before, strict=True)))
    assert volume.digest() == load(moved).digest()
    assert volume.slices == load(moved).slices


def whose_job_was_claimed(store: Store) -> ReadAhead:
    """Of a worker that looks for a job: what it has read of a series whose job somebody has claimed by then."""
    receive(store, "1.5")
    ahead = reader(store)
    read_all(ahead)
    store.close_due(QUIET_S)
    ahead.claims()
    assert store.claim(QUIET_S + 1) is not None
    return ahead


def test_what_was_read_is_there_for_the_job_however_early_its_series_looks_claimed(store: Store) -> None:
    ahead = whose_job_was_claimed(store)
    assert not ahead.step()  # the other thread: the series is neither open nor queued any more
    assert len(ahead.take(1, attempt=1)) == 4


def test_a_first_series_is_read_while_the_worker_looks_for_a_job(store: Store) -> None:
    receive(store, "1.5")
    ahead = reader(store)
    ahead.claims()
    assert ahead.step()


def test_a_worker_that_finds_no_job_lets_go_of_a_series_that_another_has_claimed(store: Store) -> None:
    ahead = whose_job_was_claimed(store)
    ahead.done()
    ahead.step()
    assert ahead.take(1, attempt=1) == {}


def test_whose_scan_it_is_is_read_with_the_slices_if_that_is_wanted(store: Store) -> None:
    paths = receive(store, "1.5")
    ahead = ReadAhead(store.database, store.files, 100 * SLICE_BYTES, whose=True)
    read_all(ahead)
    read = {store.files.absolute(path): file.stated for path, file in ahead.take(1, attempt=1).items()}
    assert read == {path: stated(path) for path in paths}
    known = {path: one for path, one in read.items() if one is not None}
    whose = examined(paths, Pseudonyms(""))
    for path in paths:
        path.unlink()
    assert examined(paths, Pseudonyms(""), known) == whose


def test_many_broken_files_are_gone_through_a_moment_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in receive(store, "1.5"):
        path.write_bytes(b"")
    monkeypatch.setattr(read_ahead, "_DECODE_FOR_S", 0.0)
    ahead = reader(store)
    assert [ahead.step() for _ in range(5)] == [True] * 4 + [False]


def test_frames_of_a_multiframe_file_are_decoded_once_for_all(tmp_path: Path) -> None:
    path = save(enhanced_dataset(noise(5), [8.0, 2.0, 0.0, 4.0, 6.0]), tmp_path / "x.dcm")
    file = decode(path, 5 * SLICE_BYTES)
    assert load([path], decoded={path: file}).digest() == load([path]).digest()


def test_a_queued_series_goes_before_one_that_still_arrives_and_one_in_hand_is_not_read(store: Store) -> None:
    receive(store, "1.5")
    store.close_due(QUIET_S)
    receive(store, "1.6", now=QUIET_S)
    ahead = reader(store)
    read_all(ahead)
    assert store.claim(QUIET_S + 1) is not None
    assert len(ahead.take(1, attempt=1)) == 4
    read_all(ahead)
    ahead.done()
    assert ahead.take(1, attempt=1) == {} and ahead.take(2, attempt=1) == {}
    read_all(ahead)
    assert not ahead.step()


def test_what_was_read_ahead_is_kept_while_a_second_model_analyses_the_series_in_hand(store: Store) -> None:
    receive(store, "1.5")
    store.close_due(QUIET_S)
    receive(store, "1.6", now=QUIET_S)
    ahead = reader(store)
    assert ahead.take(1, attempt=1) == {}
    read_all(ahead)
    assert ahead.take(1, attempt=1) == {}, "the second model's job"
    assert len(ahead.take(2, attempt=1)) == 4


def test_a_job_that_was_tried_before_is_computed_alone(store: Store) -> None:
    receive(store, "1.5")
    store.close_due(QUIET_S)
    receive(store, "1.6", now=QUIET_S)
    ahead = reader(store)
    assert store.claim(QUIET_S + 1) is not None
    ahead.take(1, attempt=2)
    assert not ahead.step()
    ahead.done()
    read_all(ahead)
    assert len(ahead.take(2, attempt=1)) == 4


def test_a_series_that_was_tried_before_is_left_to_its_own_job(store: Store) -> None:
    receive(store, "1.5")
    store.close_due(QUIET_S)
    assert store.claim(QUIET_S + 1, worker="dead") is not None
    with store.database.transaction() as tx:
        job_takeover.release_expired(tx, QUIET_S + LEASE_S + 2, 3)
    assert store.states("jobs") == ["QUEUED"] and not reader(store).step()


def test_memory_stays_within_its_bound(store: Store) -> None:
    receive(store, "1.5", slices=6)
    ahead = reader(store, slices=3)
    read_all(ahead)
    assert len(ahead.take(1, attempt=1)) <= 3


def test_an_altered_file_is_not_kept(store: Store) -> None:
    paths = receive(store, "1.5")
    paths[1].write_bytes(paths[1].read_bytes()[:-1] + b"!")
    ahead = reader(store)
    read_all(ahead)
    assert set(taken(store, ahead)) == {paths[0], paths[2], paths[3]}


def test_a_slice_that_kills_its_decoder_is_left_to_its_own_job(store: Store) -> None:
    plane = noise(1, 32, 40)[0].astype(np.uint16)
    stream = b"\xff\xd8\xff\xe0" + lossless_jpeg(plane)[4:]  # without a Huffman table
    files = []
    for index in range(3):
        path = store.folder / f"{index}.dcm"
        save(slice_dataset(plane, 2.0 * index), path, "1.2.840.10008.1.2.4.70", lambda words: stream)
        files.append(store.files.write_durably([path.read_bytes()]))
    arrivals = [
        Arrival(f"1.5.{n}", CT_IMAGE, "1.5", "1.2", EXPLICIT_LE, "CT", "NODE", "", file, IndexedHeader(modality="CT"))
        for n, file in enumerate(files)
    ]
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, 0.0, QUIET_S)
    ahead = reader(store)
    read_all(ahead)
    assert ahead.take(1, attempt=1) == {}


def test_slices_that_come_while_it_runs_are_decoded(store: Store) -> None:
    ahead, stop = reader(store), threading.Event()
    thread = threading.Thread(target=ahead.run, args=(stop, 0.01))
    thread.start()
    try:
        paths = receive(store, "1.5", now=time.time())
        wait_for(lambda: len(ahead._read) == len(paths), 10, "decoded slices")
    finally:
        stop.set()
        thread.join()
    assert np.array_equal(taken(store, ahead)[paths[0]].planes[0], load(paths).hu[0])
