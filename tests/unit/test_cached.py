"""The cache: built once per key, and never half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mergesearch.sources.cached import cached


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path))
    return tmp_path / "thing"


def make(text: str, calls: list[str]):  # type: ignore[no-untyped-def]
    def build(folder: Path) -> None:
        calls.append(text)
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file.txt").write_text(text)

    return build


def test_equal_keys_are_built_once_and_others_apart() -> None:
    calls: list[str] = []
    first = cached("thing", {"a": 1, "b": [2.5, "x"]}, make("first", calls))
    again = cached("thing", {"b": [2.5, "x"], "a": 1}, make("again", calls))
    other = cached("thing", {"a": 1, "b": [2.5, "y"]}, make("other", calls))
    elsewhere = cached("another", {"a": 1, "b": [2.5, "x"]}, make("elsewhere", calls))
    assert first == again
    assert (first / "sub" / "file.txt").read_text() == "first"
    assert len({first, other, elsewhere}) == 3
    assert calls == ["first", "other", "elsewhere"]


def test_the_key_stands_beside_the_result(shelf: Path) -> None:
    folder = cached("thing", {"steps": 60}, make("x", []))
    assert json.loads((shelf / f"{folder.name}.key.json").read_text()) == {"steps": 60}


def test_a_build_that_fails_is_not_taken_for_whole(shelf: Path) -> None:
    def broken(folder: Path) -> None:
        folder.mkdir()
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cached("thing", {"a": 1}, broken)
    assert not list(shelf.iterdir())
    folder = cached("thing", {"a": 1}, make("whole", []))
    assert [p.name for p in folder.rglob("*.txt")] == ["file.txt"]


def test_a_killed_build_is_built_again_and_cleared_away_later(shelf: Path) -> None:
    program = """
import os, signal
from mergesearch.sources.cached import cached
def build(folder):
    folder.mkdir()
    (folder / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
cached("thing", {"a": 1}, build)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = shelf.glob(".partial-*")
    folder = cached("thing", {"a": 1}, make("whole", []))
    assert [p.name for p in folder.rglob("*.txt")] == ["file.txt"]
    assert left.exists()  # it could belong to a process that is still at work
    old = time.time() - 2 * 24 * 3600
    os.utime(left, (old, old))
    cached("thing", {"a": 2}, make("other", []))
    assert not left.exists()


def test_two_builders_of_one_key_agree() -> None:
    """While the outer build is at work another process finishes the same key; the first result stays."""
    calls: list[str] = []

    def slow(folder: Path) -> None:
        cached("thing", {"a": 1}, make("quick", calls))
        make("slow", calls)(folder)

    folder = cached("thing", {"a": 1}, slow)
    assert calls == ["quick", "slow"]
    assert (folder / "sub" / "file.txt").read_text() == "quick"


def test_keys_and_kinds_that_cannot_name_a_folder_are_refused() -> None:
    with pytest.raises(TypeError):
        cached("thing", {"a": Path()}, make("x", []))
    with pytest.raises(ValueError, match="kind"):
        cached("../thing", {}, make("x", []))
