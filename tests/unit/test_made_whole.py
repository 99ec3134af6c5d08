"""`made_whole` without any model: names, locks and renames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergesearch.errors import ExportError
from mergesearch.results import folder
from mergesearch.results.folder import RECIPE_FILE


@pytest.mark.parametrize("step", range(4))
def test_the_process_may_die_between_any_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A forced replacement is four steps; after a stop before each of them the next export finds a whole folder."""
    out = tmp_path / "merged"
    with folder.made_whole(out, force=False) as partial:
        (partial / RECIPE_FILE).write_text("old")

    class KilledError(BaseException):
        pass

    steps = 0

    def dies(function: Any) -> Any:
        def stepping(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == step + 1:
                raise KilledError
            return function(*arguments, **options)

        return stepping

    def replace(patch: pytest.MonkeyPatch) -> None:
        with folder.made_whole(out, force=True) as partial:
            (partial / RECIPE_FILE).write_text("new")
            patch.setattr(Path, "rename", dies(Path.rename))
            rmtree = folder.shutil.rmtree
            # A killed process does not tidy up on its way out, either.
            patch.setattr(folder.shutil, "rmtree", dies(rmtree) if step == 3 else lambda *a, **k: None)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        replace(patch)
    with pytest.raises(ExportError, match="exists"), folder.made_whole(out, force=False):
        pass
    assert (out / RECIPE_FILE).read_text() == ("old" if step < 2 else "new")
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]


def test_an_export_that_is_under_way_is_no_leftover(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with folder.made_whole(out, force=False) as first:
        (first / RECIPE_FILE).write_text("first")
        with folder.made_whole(out, force=False) as second:
            (second / RECIPE_FILE).write_text("second")
            assert first.is_dir()
        assert (out / RECIPE_FILE).read_text() == "second"
        with pytest.raises(ExportError, match="exists"), folder.made_whole(out, force=False):
            pass
        assert first.is_dir()
        out.rename(tmp_path / "elsewhere")
    assert (out / RECIPE_FILE).read_text() == "first"


def test_what_appears_at_the_destination_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with pytest.raises(ExportError, match="exists"), folder.made_whole(out, force=False):
        out.mkdir()
    assert list(out.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]
