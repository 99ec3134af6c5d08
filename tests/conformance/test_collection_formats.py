"""Every collection format: what its writer wrote, its reader gives back.

Runs over the registry, so a new format is tested by being there. The tiny collection has two-byte and
three-byte characters, graded and zero judgements, and documents that are nobody's relevant one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from mergesearch.errors import CollectionError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.formats import FORMATS, CollectionOptions, load_collection, write_collection
from mergesearch.evaluation_schema import CollectionEntry

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = {
    "d1": "Eine Straße führt über den Fluss",
    "d2": "A road crosses the river",
    "d3": "橋は川を渡る",
    "d4": 'Quotes " and \\ slashes, commas',
    "d5": "A mill by the river",
    "d6": "Nothing of the kind",
}
QUERIES = {"q1": "road over a river", "q2": "橋", "q3": "mills"}
QRELS = {
    "q1": {"d1": 1, "d2": 2, "d6": 0},
    "q2": {"d3": 3, "d4": 0, "d1": 0},
    "q3": {"d5": 1, "d2": 0, "d6": 0},
}

TINY = Collection(
    name="tiny",
    split="dev",
    query_ids=list(QUERIES),
    query_texts=list(QUERIES.values()),
    doc_ids=list(DOCUMENTS),
    doc_texts=list(DOCUMENTS.values()),
    qrels=QRELS,
    candidates={query: list(grades) for query, grades in QRELS.items()},
)


@pytest.fixture(autouse=True)
def _hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` prepares from local folders goes to the test's folder."""
    datasets = pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))


@pytest.fixture(params=sorted(FORMATS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def expected(name: str) -> Collection:
    """What the format can hold of the tiny collection: pseudo-queries are not graded, and no document is judged off."""
    made = TINY if FORMATS[name].candidate_lists else replace(TINY, candidates=None)
    if FORMATS[name].pseudo_queries:
        relevant = {q: {d: 1 for d, grade in grades.items() if grade} for q, grades in QRELS.items()}
        return replace(made, qrels=relevant)
    return made


def load(name: str, options: dict[str, object], folder: Path, split: str = "dev") -> Collection:
    return load_collection(name, options, name="tiny", split=split, relative_to=folder)


def test_reads_what_it_wrote(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    loaded = load(name, write_collection(name, expected(name), folder), folder)
    wanted = expected(name)
    assert dict(zip(loaded.doc_ids, loaded.doc_texts, strict=True)) == DOCUMENTS
    assert dict(zip(loaded.query_ids, loaded.query_texts, strict=True)) == QUERIES
    assert loaded.qrels == wanted.qrels
    assert (loaded.candidates is None) == (wanted.candidates is None)
    assert loaded.content_hash == wanted.content_hash
    assert (loaded.name, loaded.split, loaded.warnings) == ("tiny", "dev", [])


def test_a_missing_split_names_those_there_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    options = write_collection(name, expected(name), folder)
    with pytest.raises(CollectionError) as caught:
        load(name, options, folder, split="train")
    assert "dev" in str(caught.value)


def test_absent_data_is_an_error_for_people(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    options = write_collection(name, expected(name), folder)
    elsewhere = {key: f"./nowhere/{value}" for key, value in options.items()}
    with pytest.raises(CollectionError, match="nowhere"):
        load(name, elsewhere, folder)


def test_options_are_a_closed_documented_model(name: str) -> None:
    model = FORMATS[name].options
    assert issubclass(model, CollectionOptions)
    with pytest.raises(ValidationError):
        model(no_such_option=1)
    undocumented = [field for field, info in model.model_fields.items() if not info.description]
    assert undocumented == []
    # The study file keeps a format's options beside its own keys, so none may carry the same name.
    assert not model.model_fields.keys() & CollectionEntry.model_fields.keys()


def test_a_misspelt_option_is_explained(name: str, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="Did you mean 'unknown_ids'"):
        load(name, {"unknown_idz": "drop"}, tmp_path)


def test_options_survive_json(name: str, tmp_path: Path) -> None:
    """Studies store options as JSON; they mean the same when read back."""
    folder = tmp_path / "tiny"
    options = FORMATS[name].options(**write_collection(name, expected(name), folder))
    again = json.loads(options.model_dump_json())
    assert FORMATS[name].options(**again) == options
    assert load(name, again, folder).content_hash == expected(name).content_hash
