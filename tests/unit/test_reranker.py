"""Re-rankers: what their files say of family, length, prompt and activation, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError, SourceError
from mergesearch.evaluation.joining import TwoTexts
from mergesearch.evaluation.rerank_settings import RerankSettings
from mergesearch.evaluation.reranker import open_reranker
from mergesearch.evaluation.rerankers import detect_family
from tests.tiny_models import tiny_reranker

if TYPE_CHECKING:
    from pathlib import Path


def rewrite(path: Path, **entries: Any) -> None:
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **entries}))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return tiny_reranker("bert", tmp_path / "bert", n_layers=1)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "cross_encoder") for kind in ("bert", "roberta", "xlm-roberta", "modernbert", "distilbert")),
        ("t5", "mono_t5"),
        ("mt5", "mono_t5"),
        ("llama", "rank_llama"),
    ],
)
def test_config_says_the_family(tmp_path: Path, kind: str, family: str) -> None:
    assert detect_family(tiny_reranker(kind, tmp_path / kind, n_layers=1), None).name == family


def test_a_language_model_has_to_be_told_or_to_have_a_logit_score(tmp_path: Path) -> None:
    folder = tiny_reranker("qwen3", tmp_path / "qwen3", n_layers=1)
    with pytest.raises(SourceError, match=r"architectures: Qwen3ForCausalLM.*query_likelihood.*yes_no"):
        detect_family(folder, None)
    assert detect_family(folder, "query_likelihood").name == "query_likelihood"
    score = {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "Transformer"}, score]))
    (folder / "1_LogitScore").mkdir()
    rewrite(folder / "1_LogitScore" / "config.json", true_token_id=40, false_token_id=30)
    assert detect_family(folder, None).name == "yes_no"
    reranker = open_reranker(folder, RerankSettings())
    assert reranker.tokenizer.convert_tokens_to_ids(list(reranker.describe().tokens or ())) == [30, 40]


def test_a_model_without_a_head_is_told_from_a_re_ranker(tmp_path: Path) -> None:
    folder = tiny_reranker("bert", tmp_path / "mlm", n_layers=1, head="mlm")
    with pytest.raises(SourceError, match=r"architectures: BertForMaskedLM.*train-reranker"):
        open_reranker(folder, RerankSettings())
    with pytest.raises(SourceError, match=r"lacks weights of .*classifier.weight.*train-reranker"):
        open_reranker(folder, RerankSettings(family="cross_encoder"))


def test_files_of_a_cross_encoder_are_honoured(bert: Path) -> None:
    plain = open_reranker(bert, RerankSettings()).describe()
    assert (plain.activation, plain.max_length, plain.form) == ("sigmoid", 160, TwoTexts())
    rewrite(bert / "config.json", sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    rewrite(bert / "config_sentence_transformers.json", prompts={"search": "find: "}, default_prompt_name="search")
    rewrite(bert / "tokenizer_config.json", model_max_length=40)
    settings = open_reranker(bert, RerankSettings()).describe()
    assert (settings.activation, settings.max_length) == ("identity", 40)
    assert settings.form == TwoTexts("find: {query}", "{document}")
    rewrite(bert / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    assert open_reranker(bert, RerankSettings()).describe().activation == "tanh"
    rewrite(bert / "config.json", sentence_transformers={"activation_fn": "some.Other"})
    with pytest.raises(EvaluationError, match=r"activation some.Other, which is not one of identity, sigmoid"):
        open_reranker(bert, RerankSettings())


def test_the_studys_word_comes_first(bert: Path) -> None:
    own = RerankSettings(max_length=20, query_template="q: {query}", document_template="d: {document}")
    reranker = open_reranker(bert, own, max_query_length=3, max_document_length=5)
    settings = reranker.describe()
    assert (settings.max_length, settings.max_query_length, settings.max_document_length) == (20, 3, 5)
    plan = reranker.plan_pairs(["the cell graph"], ["node " * 9], np.array([[0, 0]]))
    tokens = reranker.tokenizer.convert_ids_to_tokens(plan.joined(np.array([0]))[0].tolist())
    assert tokens == ["[CLS]", "q", ":", "the", "[SEP]", "d", ":", "node", "node", "node", "[SEP]"]
    with pytest.raises(EvaluationError, match="more than the model's 162 positions"):
        open_reranker(bert, RerankSettings(max_length=163))


def test_what_cannot_be_scored_says_what_to_do(tmp_path: Path, bert: Path) -> None:
    three = tiny_reranker("bert", tmp_path / "three", n_layers=1, config={"num_labels": 3})
    with pytest.raises(EvaluationError, match="has 3 labels"):
        open_reranker(three, RerankSettings())
    with pytest.raises(EvaluationError, match=r"unknown family of re-rankers 'cross_encode'\. Did you mean"):
        open_reranker(bert, RerankSettings(family="cross_encode"))
    with pytest.raises(EvaluationError, match="lies on one GPU"):
        open_reranker(bert, RerankSettings(), gpus=2)
    t5 = tiny_reranker("t5", tmp_path / "t5", n_layers=1)
    with pytest.raises(EvaluationError, match=r"the answer 'irrelevant' is not one token"):
        open_reranker(t5, RerankSettings(tokens=("irrelevant", "relevant")))
    assert open_reranker(t5, RerankSettings(tokens=("no", "yes"))).describe().tokens == ("▁no", "▁yes")


def test_texts_that_end_in_what_pads_are_read_to_their_end(tmp_path: Path) -> None:
    """transformers looks for the last token that is no padding by its id."""
    folder = tiny_reranker("llama", tmp_path / "llama", n_layers=1)
    reranker = open_reranker(folder, RerankSettings())
    found = reranker.logits(reranker.plan_pairs(["a"], ["b", "b<pad>"], np.array([[0, 0], [0, 1]])))
    assert not torch.isclose(found[0], found[1])
