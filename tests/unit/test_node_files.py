"""Files of the machine where a study was resolved, looked for on another one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from mergesearch.errors import WorkerError
from mergesearch.resolving import load_study
from mergesearch.sources.locate import commit_of, hub_id
from mergesearch.workers.evaluator_spec import EvaluatorSpec
from mergesearch.workers.node_files import files_named, with_files_here
from tests.tiny_studies import TinyStudy, make_study

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tiny(tmp_path: Path) -> TinyStudy:
    return make_study(tmp_path / "study")


@pytest.fixture
def spec(tiny: TinyStudy) -> EvaluatorSpec:
    return load_study(tiny.file).evaluator_spec()


def test_sources_adapters_and_collections_are_looked_for(tiny: TinyStudy, spec: EvaluatorSpec) -> None:
    spec = replace(spec, adapters={"domain": tiny.folder / "adapter"})
    files = files_named(spec)
    places = {path.relative_to(tiny.folder).as_posix(): what for path, what in files.items()}
    assert places == {
        "retriever": "source 'retriever'",
        "domain": "source 'domain'",
        "adapter": "source 'domain'",
        "collection": "collection 'made'",
    }


def test_what_is_here_is_read_where_it_is(spec: EvaluatorSpec) -> None:
    assert with_files_here(spec, files_named(spec), "here") == spec


def test_options_that_are_no_paths_are_left_alone(spec: EvaluatorSpec) -> None:
    options = {"name": "org/collection", "long": "x" * 5000, "user": "~nobody-of-that-name/x", "empty": "", "depth": 3}
    spec = replace(spec, collections=(replace(spec.collections[0], options=options),))
    assert set(files_named(spec).values()) == {"source 'retriever'", "source 'domain'"}


def test_all_that_is_missing_is_named_each_with_node_path_and_remedy(tiny: TinyStudy, spec: EvaluatorSpec) -> None:
    files = files_named(spec)
    shutil.rmtree(tiny.folder / "domain")
    shutil.rmtree(tiny.folder / "collection")
    with pytest.raises(WorkerError) as found:
        with_files_here(spec, files, "gpu-7 (10.0.0.7)")
    first, second = sorted(str(found.value).splitlines(), key=lambda line: "domain" not in line)
    assert first == (
        f"node gpu-7 (10.0.0.7) has no {str(tiny.folder / 'domain')!r}, which source 'domain' is read from. Put it on "
        "storage that all nodes have at this path, or give the source by its hub name (org/name)."
    )
    assert second.startswith(
        f"node gpu-7 (10.0.0.7) has no {str(tiny.folder / 'collection')!r}, which collection 'made'"
    )
    assert second.endswith("Put it on storage that all nodes have at this path.")


def cached(model: Path, cache: Path, name: str, commit: str = COMMIT) -> Path:
    """The model as a download would have left it."""
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    shutil.copytree(model, folder)
    return folder


def test_a_hub_model_is_taken_from_the_nodes_own_cache_at_the_same_commit(
    tiny: TinyStudy, spec: EvaluatorSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = cached(tiny.folder / "domain", tmp_path / "driver", "org/my-domain.v2")
    assert (hub_id(there), commit_of(there)) == ("org/my-domain.v2", COMMIT)
    assert hub_id(tiny.folder / "domain") is None
    spec = replace(spec, folders={**spec.folders, "domain": there})
    files = files_named(spec)
    shutil.rmtree(tmp_path / "driver")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "node"))
    cached(tiny.folder / "retriever", tmp_path / "node", "org/my-domain.v2", commit="f" * 40)
    with pytest.raises(WorkerError, match=rf"node here cannot fetch source 'domain': .*at revision '{COMMIT}'"):
        with_files_here(spec, files, "here")
    here = cached(tiny.folder / "domain", tmp_path / "node", "org/my-domain.v2")
    assert with_files_here(spec, files, "here") == replace(spec, folders={**spec.folders, "domain": here})
