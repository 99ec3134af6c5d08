"""Exports that run out of disk or are killed leave nothing, or what was there before, or a whole new export."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mergesearch import export_merge
from mergesearch.errors import ExportError
from mergesearch.evaluation.encoder import open_encoder
from mergesearch.merging.resident import ResidentMerger
from mergesearch.results import export
from mergesearch.results.folder import RECIPE_FILE
from tests.integration.test_export import resident, scored
from tests.tiny_studies import TinyStudy, make_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from mergesearch.storage.store import StudyStore
    from mergesearch.study import Study


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study")).change("search", "trials", to=2)


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy) -> Iterator[tuple[Study, StudyStore]]:
    with scored(tiny) as found:
        yield found


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A file system of its own of `n_bytes`."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_too_small_is_refused_before_anything_is_written(
    finished: tuple[Study, StudyStore], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(ExportError, match=r"needs 1\.\d MiB in .*disk, 1\.0 MiB are free"):
            export_merge(*finished, disk / "merged", trial=0)
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    finished: tuple[Study, StudyStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Somebody else takes the room that was there: what is left holds this share of the files."""
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        ours = export.check_room

        def fill_after(folder: Path, n_bytes: int) -> None:
            ours(folder, n_bytes)
            free = os.statvfs(disk)
            left = int(share * (n_bytes - export.OWN_FILES_BYTES))
            (disk / "somebody else's").write_bytes(b"x" * (free.f_bavail * free.f_frsize - left))

        monkeypatch.setattr(export, "check_room", fill_after)
        with pytest.raises(ExportError, match=r"could not write .*merged.*nothing was left behind"):
            export_merge(*finished, disk / "merged", trial=0)
        assert [p.name for p in disk.iterdir()] == ["somebody else's"]


def test_a_file_size_limit_is_like_a_full_disk(finished: tuple[Study, StudyStore], tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ExportError, match=r"could not write .*merged.*nothing was left behind"):
            export_merge(*finished, tmp_path / "merged", trial=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(finished: tuple[Study, StudyStore], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"could not write .*nothing was left behind"):
        export_merge(*finished, tmp_path / "file" / "merged", trial=0)


# What happens when the process dies

KILLS = 6

CHILD = """
import itertools, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mergesearch import load_study
from mergesearch.results import export
from mergesearch.storage.store import StudyStore

# One import serves many children; without threads of its own a process may be forked safely.
url, file, out = sys.argv[1:]
study = load_study(file)
place = str(Path(out).parent)
touched = itertools.count()

def kill_before(k):
    def hook(event, arguments):
        there = any(isinstance(a, (str, Path)) and str(a).startswith(place) for a in arguments)
        if (there or event in ("os.remove", "os.rmdir")) and next(touched) == k:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

while line := sys.stdin.readline():
    trial, k = map(int, line.split())
    child = os.fork()
    if child == 0:
        kill_before(k)
        with StudyStore.open(url, study.name, None, exclusive=False) as store:
            export.export_merge(study, store, Path(out), trial=trial, force=True)
        print("exported", next(touched), flush=True)
        os._exit(0)
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        print("killed", 0, flush=True)
"""


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_export_leaves_the_old_one_or_the_new_one(
    finished: tuple[Study, StudyStore], tiny: TinyStudy, tmp_path: Path
) -> None:
    """Forced exports of two trials in turn, killed before they touch the disk for the k-th time, for several k."""
    study, store = finished
    out = tmp_path / "place" / "merged"
    export_merge(study, store, out, trial=0)
    wanted = {n: fingerprint_of(resident(study, store.recipe(n))) for n in (0, 1)}
    assert wanted[0] != wanted[1]
    arguments = [sys.executable, "-c", CHILD, tiny.storage, str(tiny.file), str(out)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as parent:

        def exported(trial: int, k: int) -> tuple[str, int]:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(f"{trial} {k}\n")
            end, touched = parent.stdout.readline().split()
            return end, int(touched)

        end, touched = exported(1, -1)
        assert end == "exported"
        assert touched > 5 * KILLS
        for i in range(KILLS):
            assert exported(i % 2, touched * (2 * i + 1) // (2 * KILLS)) == ("killed", 0)
            # Between two renames the old one stands under another name, from where the next export takes it back.
            (whole,) = [out] if out.exists() else out.parent.glob(".merged.replaced-*")
            number = json.loads((whole / RECIPE_FILE).read_text())["trial"]
            weights = {n: p.detach() for n, p in open_encoder(whole).parameters.items()}
            assert fingerprint_of(weights) == wanted[number]
    export_merge(study, store, out, trial=0, force=True)
    assert [p.name for p in out.parent.iterdir()] == ["merged"]


def fingerprint_of(weights: dict[str, torch.Tensor]) -> str:
    return ResidentMerger(weights, {}, dict.fromkeys(weights, "")).fingerprint()
