"""What a folder holds: its series, and by name what looks like a slice and cannot be read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.errors import CorruptInstance
from inference.volume.folder import find_series, read_folder
from inference.volume.scans import load_scan, scans_in
from tests.unit.ct_series import noise, save, slice_dataset, write_series


def damaged(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    path.write_bytes(
        {
            "no preamble": whole[132:],
            "no file meta": whole[whole.index(b"\x08\0\x08\0") :],
            "no bytes": b"",
            "cut in the file meta": whole[:200],
            "cut before the series": whole[: whole.index(b"\x20\0\x0d\0")],
            "zeros": bytes(len(whole)),
            "noise": bytes(range(256)) * 8,
        }[damage]
    )


@pytest.mark.parametrize("name", ["{:03d}.dcm", "IM{:04d}", "1.2.840.{}", "{}.IMA"])
@pytest.mark.parametrize(
    "damage",
    ["no preamble", "no file meta", "no bytes", "cut in the file meta", "cut before the series", "zeros", "noise"],
)
def test_a_slice_that_cannot_be_read_is_named_and_refuses_its_series(tmp_path: Path, name: str, damage: str) -> None:
    paths = [path.rename(tmp_path / name.format(n)) for n, path in enumerate(write_series(tmp_path, noise(5)))]
    damaged(paths[-1], damage)
    folder = read_folder(tmp_path)
    assert folder.series == {"2.25.2": sorted(paths[:-1])}
    assert [(file.path, bool(file.reason)) for file in folder.unreadable] == [(paths[-1], True)]
    assert folder.suspects("2.25.2") == folder.unreadable
    with pytest.raises(CorruptInstance, match="1 file of the series, or beside it, cannot be read") as refused:
        folder.whole("2.25.2")
    assert paths[-1].name not in str(refused.value)
    (scan,) = scans_in(tmp_path)
    with pytest.raises(CorruptInstance):
        load_scan(scan)


def test_a_series_in_another_folder_and_one_that_the_file_does_not_name_stay(tmp_path: Path) -> None:
    write_series(tmp_path / "a", noise(3))
    write_series(tmp_path / "b", noise(3), SeriesInstanceUID="2.25.77")
    write_series(tmp_path / "a" / "other", noise(3), SeriesInstanceUID="2.25.78")
    damaged(tmp_path / "a" / "002.dcm", "no bytes")
    extra = save(slice_dataset(noise(1)[0], 9.0, SeriesInstanceUID="2.25.77"), tmp_path / "a" / "extra.dcm")
    damaged(extra, "no file meta")
    folder = read_folder(tmp_path)
    assert {file.path.name: file.series_uid for file in folder.unreadable} == {"002.dcm": "", "extra.dcm": "2.25.77"}
    assert [file.path.name for file in folder.suspects("2.25.2")] == ["002.dcm"]
    assert [file.path.name for file in folder.suspects("2.25.77")] == ["extra.dcm"]
    assert folder.whole("2.25.78") == folder.series["2.25.78"]


def test_what_does_not_look_like_dicom_is_passed_over(tmp_path: Path) -> None:
    paths = [path.rename(path.with_suffix("")) for path in write_series(tmp_path, noise(3))]
    (tmp_path / "README").write_text("Scanned in März.\nNo image.\n", encoding="utf-8")
    (tmp_path / "preview.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(64))
    (tmp_path / ".DS_Store").write_bytes(bytes(64))
    (tmp_path / "._000").write_bytes(b"\0\5\x16\7" + bytes(64))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list").write_bytes(bytes(20))
    folder = read_folder(tmp_path)
    assert folder.series == {"2.25.2": paths} and folder.unreadable == ()
    assert folder.whole("2.25.2") == paths


def test_a_directory_of_files_belongs_to_no_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(3))
    listing = slice_dataset(noise(1)[0], 0, SOPClassUID="1.2.840.10008.1.3.10", SeriesInstanceUID=None)
    save(listing, tmp_path / "DICOMDIR")
    assert read_folder(tmp_path).whole("2.25.2") == paths


def test_one_file_that_is_asked_for_and_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG")
    assert [file.path for file in read_folder(path).unreadable] == [path]
    assert find_series(path) == {}


def test_two_unreadable_files_are_counted(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(4))
    damaged(paths[0], "no bytes")
    damaged(paths[3], "no preamble")
    with pytest.raises(CorruptInstance, match=r"2 files .*\(empty, no DICOM preamble\)"):
        read_folder(tmp_path).whole("2.25.2")


def test_a_long_run_of_zeros_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(4_000_000))
    assert [file.reason for file in read_folder(path).unreadable] == ["unreadable header"]


@pytest.mark.parametrize("name", ["{:03d}.dcm", "IM{:04d}"])
def test_a_slice_that_is_a_link_to_nothing_or_a_pipe_is_named_and_refuses_its_series(tmp_path: Path, name: str) -> None:
    paths = [path.rename(tmp_path / name.format(n)) for n, path in enumerate(write_series(tmp_path, noise(5)))]
    for path in (paths[0], paths[-1]):
        path.unlink()
    paths[0].symlink_to(tmp_path / ".annex" / "not fetched")
    os.mkfifo(paths[-1])
    folder = read_folder(tmp_path)
    assert [(file.path, file.reason) for file in folder.unreadable] == [
        (paths[0], "a link to nothing"),
        (paths[-1], "not a plain file"),
    ]
    with pytest.raises(CorruptInstance, match="2 files of the series"):
        folder.whole("2.25.2")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path, noise(3))
    (tmp_path / "more").mkdir()
    list_folder = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list everything
    with pytest.raises(CorruptInstance, match="a folder that cannot be listed"):
        read_folder(tmp_path).whole("2.25.2")
