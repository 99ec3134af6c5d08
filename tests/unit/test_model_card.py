"""The card of an exported model, read back by the hub's own library."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef
from mergesearch.results.model_card import model_card

RECIPE = MergeRecipe(
    method="linear",
    sources=(SourceRef("retriever", "org/retriever", "0"), SourceRef("domain", "models/domain", "1")),
    template="retriever",
    groups=(
        GroupRecipe("embeddings", ("embeddings",), copy_from="retriever"),
        GroupRecipe(
            "segment_1",
            ("layer.0.attention", "layer.0.mlp", "layer.0.norms"),
            coefficients={"weight": {"retriever": 0.5, "domain": 0.5}},
        ),
    ),
)
MIT, OTHER = {"id": "mit", "name": None, "link": None}, {"id": "other", "name": "own", "link": "https://example.org/l"}


def provenance(**changes: Any) -> dict[str, Any]:
    lengths = {"query": 64, "document": 64}
    encoding = {"dtype": "bfloat16", "pooling": ["mean"], "similarity": "cosine", "scored_length": lengths,
                "differs_from_template": False, "append_eos": False, "given_prompts": {}}  # fmt: skip
    dev = {
        "value": 0.41234,
        "optimism": 0.0123,
        "expected": 0.40004,
        "verdict": "the merge gains",
        "collections": {"a|b": {"metric": "ndcg@10", "score": 0.41234, "queries": 8}},
    }
    test = [{"split": "test", "collection": "a|b", "dataset": None, "metric": "ndcg@10", "score": 0.4, "queries": 9}]
    return {
        "study": "tiny",
        "recipe": RECIPE.to_dict(),
        "sources": {"retriever": {"hub": "org/retriever", "licence": MIT}, "domain": {"hub": None, "licence": MIT}},
        "encoding": encoding | changes,
        "dev": dev,
        "test": test,
        "weights": "5eed",
        "versions": {"export": {"mergesearch": "0.1.0", "torch": "2.0"}},
        "mergekit": {"file": None, "version": "0.1.5", "tolerance": None, "why_not": "a reason"},
    }


def test_the_hub_reads_the_card_and_finds_the_sources() -> None:
    found = provenance()
    found["sources"]["domain"]["hub"] = "other-org/domain.v2"
    card = ModelCard(model_card(found))
    assert card.data.base_model == ["org/retriever", "other-org/domain.v2"]
    assert card.data.to_dict()["base_model_relation"] == "merge"
    assert card.data.library_name == "sentence-transformers"
    assert {"merge", "retrieval", "linear"} <= set(card.data.tags)


def test_without_hub_sources_there_is_no_base_model() -> None:
    found = provenance()
    found["sources"]["retriever"]["hub"] = None
    card = ModelCard(model_card(found))
    assert card.data.base_model is None
    assert "base_model" not in card.data.to_dict()
    assert "base_model_relation" not in card.data.to_dict()


def test_only_test_scores_are_metadata() -> None:
    found = provenance()
    found["test"].append({**found["test"][0], "dataset": "org/judged", "metric": "map@100", "score": 0.123456})
    results = ModelCard(model_card(found)).data.eval_results
    assert results is not None
    assert [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in results] == [
        ("a|b", "test", "ndcg_at_10", 0.4),
        ("org/judged", "test", "map_at_100", 0.12346),
    ]
    found["test"] = []
    data = ModelCard(model_card(found)).data
    assert data.eval_results is None
    assert "model-index" not in data.to_dict()
    assert "0.4123" in model_card(found)  # in the text, where it is said what it is


def test_test_scores_stand_beside_those_of_the_sources() -> None:
    found = provenance()
    found["test"][0]["others"] = {"retriever alone": 0.38, "uniform average": 0.39}
    text = model_card(found)
    assert "| test | a\\|b | this merge | ndcg@10 | 0.4000 | 9 |" in text
    assert "| test | a\\|b | retriever alone | ndcg@10 | 0.3800 | 9 |" in text
    results = ModelCard(text).data.eval_results
    assert results is not None
    assert [r.metric_value for r in results] == [0.4]  # of this model only


def test_dev_scores_over_a_pool_are_not_to_be_compared() -> None:
    found = provenance()
    assert "smaller corpus" not in model_card(found)
    found["dev"]["collections"]["a|b"]["pool"] = True
    assert "ranked a smaller corpus than the whole" in model_card(found)


@pytest.mark.parametrize(
    ("retriever", "domain", "expected", "told"),
    [
        (MIT, MIT, "mit", "- retriever: mit"),
        (OTHER, OTHER, "other", "- domain: other (own, https://example.org/l)"),
        (MIT, OTHER, None, "under different licences (retriever: mit; domain: other (own, https://example.org/l))"),
        (MIT, None, None, "The licence of domain is not known"),
    ],
)
def test_a_licence_is_set_where_all_sources_agree(retriever: Any, domain: Any, expected: str | None, told: str) -> None:
    found = provenance()
    found["sources"]["retriever"]["licence"], found["sources"]["domain"]["licence"] = retriever, domain
    text = model_card(found)
    assert ModelCard(text).data.license == expected
    assert told in text
    assert ("the card sets no `license`" in text) == (expected is None)


def test_the_base_of_an_adapter_has_a_licence_too() -> None:
    found = provenance()
    found["sources"]["domain"]["base"] = {"source": None, "hub": "org/base", "licence": None}
    assert "The licence of the base of domain is not known" in model_card(found)
    found["sources"]["domain"]["base"]["source"] = "retriever"
    assert ModelCard(model_card(found)).data.license == "mit"


def test_recipe_and_scores_are_tables() -> None:
    text = model_card(provenance())
    assert "| embeddings | embeddings | copied from retriever |" in text
    assert "| segment_1 | layer.0 | weight[retriever] = 0.5, weight[domain] = 0.5 |" in text
    assert r"| dev | a\|b | this merge | ndcg@10 | 0.4123 | 8 |" in text
    assert r"| test | a\|b | this merge | ndcg@10 | 0.4000 | 9 |" in text
    assert "Scores on the dev split are selection scores" in text
    assert "Of the dev score 0.4123 about 0.0123 is luck, so that about 0.4000 is to be expected" in text
    by_hand = provenance()
    by_hand["dev"] |= {"optimism": None, "expected": None, "verdict": None}
    assert "was named by hand" in model_card(by_hand)


def test_how_to_make_it_again_and_what_mergekit_says_of_it() -> None:
    text = model_card(provenance())
    assert "mergesearch merge mergesearch.json --out merged" in text
    assert "SHA-256\n`5eed`" in text
    assert "no mergekit configuration of this merge: a reason." in text
    exact = provenance()
    exact["mergekit"] = {"file": "m.yml", "version": "0.1.5", "tolerance": "to the bit", "why_not": None}
    assert "`m.yml` says the same merge for mergekit 0.1.5, whose weights are equal to the bit" in model_card(exact)


def test_what_the_user_has_to_repeat_is_said() -> None:
    changes: dict[str, Any] = {"differs_from_template": True, "given_prompts": {"made": {"query": 'ask: "'}}}
    text = model_card(provenance(**changes, scored_length={"query": 32, "document": 64}))
    assert "Scored in bfloat16 with mean pooling" in text
    assert "cut to 32 tokens and documents to 64" in text
    assert r'On made the study gave the query prompt "ask: \""' in text
    assert "module files say what was scored" in text


def test_an_appended_end_token_is_said() -> None:
    assert "model.tokenizer.eos_token" in model_card(provenance(append_eos=True))
    assert "eos_token" not in model_card(provenance())


def test_a_recipe_that_nobody_scored_has_a_card_without_scores() -> None:
    found = provenance()
    for key in ("dev", "test", "study", "mergekit"):
        del found[key]
    text = model_card(found)
    assert "Nothing was scored" in text
    assert "| split |" not in text
    assert "Scored in" not in text
    assert "were given" in text
    assert ModelCard(text).data.eval_results is None
