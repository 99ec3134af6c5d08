"""Artifacts: what is read is what was written, or nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.artifacts import Artifacts, check_location
from mergesearch.errors import StorageError


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_contents_come_back_and_equal_ones_are_kept_once(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("artifacts")
    names = [Artifacts(folder).write(content) for content in contents]
    assert [Artifacts(folder).read(name) for name in names] == contents
    assert len(list(folder.iterdir())) == len(set(contents))


@pytest.mark.parametrize("damage", [b"", b"half", b"other bytes entirely"])
def test_a_damaged_or_missing_artifact_is_not_there(tmp_path: Path, damage: bytes) -> None:
    artifacts = Artifacts(tmp_path)
    name = artifacts.write(b"what was encoded")
    (tmp_path / name).write_bytes(damage)
    assert artifacts.read(name) is None
    assert artifacts.read("0" * 64) is None
    artifacts.write(b"what was encoded")
    assert artifacts.read(name) == b"what was encoded"


def test_one_that_is_evicted_while_it_is_read_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(tmp_path)
    name = artifacts.write(b"content")
    used = os.utime

    def evicted(path: Path) -> None:
        path.unlink()
        used(path)

    monkeypatch.setattr(os, "utime", evicted)
    assert artifacts.read(name) == b"content"
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path)
    (tmp_path / ("a" * 64)).mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        artifacts.read("a" * 64)


def test_a_folder_holds_no_more_than_it_may_and_the_newest_stays(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, most_bytes=250)
    names = [artifacts.write(bytes([i]) * 100) for i in range(5)]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 250
    assert artifacts.read(names[-1]) == bytes([4]) * 100


def test_another_process_half_way_through_a_write_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 64}.1234.part").write_bytes(b"x" * 1000)
    Artifacts(tmp_path, most_bytes=10).write(b"y" * 100)
    assert (tmp_path / f"{'a' * 64}.1234.part").is_file()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://somewhere", "s3://BUCKET"),
        ("s3://bucket/folder", "no folder in it"),
        ("gs:///bucket", "name a bucket"),
        ("{tmp}/file/below", "cannot be kept"),
    ],
)
def test_locations_that_cannot_be_used_are_refused(tmp_path: Path, location: str, message: str) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(StorageError, match=message):
        Artifacts(location.format(tmp=tmp_path))
    with pytest.raises(StorageError, match=message):
        check_location(location.format(tmp=tmp_path))


def test_looking_at_a_location_writes_nothing(tmp_path: Path) -> None:
    check_location(str(tmp_path / "new" / "folder"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("location", "module", "library"),
    [("s3://bucket", "boto3", "boto3"), ("gs://bucket", "google.cloud.storage", "google-cloud-storage")],
)
def test_a_bucket_without_its_library_says_what_to_install(location: str, module: str, library: str) -> None:
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        pytest.skip(f"{library} is installed here")
    with pytest.raises(StorageError, match=f"pip install {library}"):
        Artifacts(location)
