"""The card of an exported model, read back by the hub's own library."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import ModelCard

from mergesearch.recipe import MergeRecipe, SourceRef
from mergesearch.resolving import load_study
from mergesearch.results.model_card import model_card
from mergesearch.study import Study
from tests.tiny_studies import TinyStudy, make_study

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tiny(tmp_path: Path) -> TinyStudy:
    return make_study(tmp_path)


def provenance(**changes: Any) -> dict[str, Any]:
    lengths = {"query": 64, "document": 64}
    encoding = {"dtype": "bfloat16", "pooling": ["mean"], "similarity": "cosine", "max_length": lengths,
                "differs_from_template": False}  # fmt: skip
    dev = {
        "value": 0.41234,
        "optimism": 0.0123,
        "expected": 0.40004,
        "verdict": "the merge gains",
        "collections": {"a|b": {"metric": "ndcg@10", "score": 0.41234, "queries": 8}},
    }
    test = [{"split": "test", "collection": "a|b", "metric": "ndcg@10", "score": 0.4, "queries": 9}]
    return {"encoding": {"append_eos": False} | encoding | changes, "dev": dev, "test": test}


def merge(study: Study, *locations: str) -> MergeRecipe:
    recipe = study.recipe({"alpha.segment_1": 0.5, "alpha.segment_2": 1.0})
    refs = [SourceRef(s.name, where, s.content_hash) for s, where in zip(recipe.sources, locations, strict=True)]
    return replace(recipe, sources=tuple(refs))


def test_the_hub_reads_the_card_and_finds_the_sources(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    card = ModelCard(model_card(study, merge(study, "org/retriever", "other-org/domain.v2"), provenance()))
    assert card.data.base_model == ["org/retriever", "other-org/domain.v2"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.library_name == "sentence-transformers"
    assert {"merge", "retrieval"} <= set(card.data.tags)


def test_folders_and_packages_are_not_taken_for_hub_models(tiny: TinyStudy) -> None:
    (tiny.folder / "models" / "mine").mkdir(parents=True)
    study = load_study(tiny.file)
    card = ModelCard(model_card(study, merge(study, "models/mine", "package:some/thing"), provenance()))
    assert card.data.base_model is None
    assert "base_model" not in card.data.to_dict()


def test_recipe_and_scores_are_tables(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    text = model_card(study, merge(study, "retriever", "domain"), provenance())
    assert "| embeddings | embeddings | copied from retriever |" in text
    assert "| segment_1 | layer.0 | weight[retriever] = 0.5, weight[domain] = 0.5 |" in text
    assert r"| dev | a\|b | ndcg@10 | 0.4123 | 8 |" in text
    assert r"| test | a\|b | ndcg@10 | 0.4000 | 9 |" in text
    assert "Scores on the dev split are selection scores" in text
    assert "Of the dev score 0.4123 about 0.0123 is luck, so that about 0.4000 is to be expected" in text
    by_hand = provenance()
    by_hand["dev"] |= {"optimism": None, "expected": None, "verdict": None}
    assert "was named by hand" in model_card(study, merge(study, "retriever", "domain"), by_hand)


def test_what_the_user_has_to_repeat_is_said(tiny: TinyStudy) -> None:
    tiny.change("evaluation", "prompts", to={"query": 'ask: "'}).change("evaluation", "max_length", "query", to=32)
    study = load_study(tiny.file)
    text = model_card(study, merge(study, "retriever", "domain"), provenance(differs_from_template=True))
    assert "Scored in bfloat16 with mean pooling" in text
    assert "cut to 32 tokens and documents to 64" in text
    assert r'On made the study gave the query prompt "ask: \""' in text
    assert "module files say what was scored" in text


def test_an_appended_end_token_is_said(tiny: TinyStudy) -> None:
    study = load_study(tiny.file)
    found = provenance()
    found["encoding"]["append_eos"] = True
    assert "model.tokenizer.eos_token" in model_card(study, merge(study, "retriever", "domain"), found)
    assert "eos_token" not in model_card(study, merge(study, "retriever", "domain"), provenance())
