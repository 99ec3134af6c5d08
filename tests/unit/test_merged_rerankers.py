"""In-place merges of re-rankers equal a plain computation on the weights that transformers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from mergesearch import load_study
from mergesearch.errors import EvaluationError, StudyFileError
from mergesearch.evaluation.reranker import Reranker
from mergesearch.protocols.limited_data import LimitedData, LimitedDataProtocol
from mergesearch.results.mteb_tasks import evaluate_mteb
from mergesearch.sources.layout import HEAD, POOLER, canonical_parameters
from mergesearch.study_file import parse_study
from mergesearch.workers.opening import open_merger
from tests.tiny_models import tiny_reranker
from tests.tiny_studies import TinyStudy, make_rerank_study

WHOLE = ("t5", "mt5")


def weights(folder: Path, like: type | None = None) -> dict[str, Tensor]:
    """By canonical names, of a bare encoder or of the class that is given."""
    return dict(canonical_parameters((like or AutoModel).from_pretrained(folder)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "llama", *WHOLE])
def test_task_arithmetic_is_added_to_all_but_head_and_pooler(kind: str, tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path, kind=kind)
    study = load_study(tiny.file)
    model, merger = open_merger(study.evaluator_spec())
    assert isinstance(model, Reranker)
    merger.apply(study.recipe({"weight.domain.segment_1": 0.5}))
    like = type(model.transformer)
    template = weights(tmp_path / "reranker", like)
    bare = like if kind in WHOLE else None
    base, domain = weights(tmp_path / "base", bare), weights(tmp_path / "domain", bare)
    assert list(model.parameters) == list(study.layout.parameters)
    merged = 0
    for name, found in model.parameters.items():
        if study.layout.parameters[name].place in (HEAD, POOLER):
            expected = template[name]
        else:
            expected = template[name] + 0.5 * (domain[name] - base[name])
            merged += 1
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
    assert merged > 10


def test_decoders_have_segments_of_their_own(tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path, kind="t5", n_layers=4)
    tiny.change("merge", "groups", to={"segments": 2, "decoder": "own"}).change("search", "enqueue", to=["sources"])
    study = load_study(tiny.file)
    names = [g.name for g in study.groups if g.merged]
    assert names == ["segment_1", "segment_2", "decoder_segment_1", "decoder_segment_2"]
    point = dict(zip([d.name for d in study.space.dimensions], (0.0, 0.5, 1.0, 0.5), strict=True))
    model, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe(point))
    like = type(model.transformer)
    template, base, domain = (weights(tmp_path / name, like) for name in ("reranker", "base", "domain"))
    shares = {"encoder.block.0": 0.0, "encoder.block.3": 0.5, "decoder.block.1": 1.0, "decoder.block.2": 0.5}
    for name, found in model.parameters.items():
        share = next((s for path, s in shares.items() if name.startswith(path + ".")), None)
        if share is not None:
            torch.testing.assert_close(found, template[name] + share * (domain[name] - base[name]))


def test_a_masked_language_model_is_a_domain_model_of_a_cross_encoder(tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path)
    tiny_reranker("bert", tmp_path / "mlm", n_layers=2, head="mlm", seed=5)
    tiny.change("sources", "domain", to="mlm")
    study = load_study(tiny.file)
    model, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe({"weight.domain.segment_1": 1.0}))
    name = "encoder.layer.1.attention.self.query.weight"
    template = weights(tmp_path / "reranker", type(model.transformer))
    base = weights(tmp_path / "base")
    domain = weights(tmp_path / "mlm", AutoModelForMaskedLM)
    torch.testing.assert_close(model.parameters[name], template[name] + domain[name] - base[name])


def test_a_head_is_merged_on_purpose_only_where_all_have_one(tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path)
    tiny.change("merge", "groups", "head", to="own").change("search", "enqueue", to=["sources"])
    with pytest.raises(StudyFileError, match="classifier"):
        load_study(tiny.file)
    for seed, name in enumerate(("base2", "domain2"), 1):
        tiny_reranker("bert", tmp_path / name, n_layers=2, seed=seed)
        tiny.change("sources", name.removesuffix("2"), to=name)
    study = load_study(tiny.file)
    model, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe({"weight.domain.segment_1": 0.0, "weight.domain.head": 1.0}))
    like = type(model.transformer)
    template, base, domain = (weights(tmp_path / name, like) for name in ("reranker", "base2", "domain2"))
    name = "classifier.weight"
    torch.testing.assert_close(model.parameters[name], template[name] + domain[name] - base[name])


def test_a_re_ranker_lies_on_one_gpu(tmp_path: Path) -> None:
    tiny: TinyStudy = make_rerank_study(tmp_path)
    tiny.change("workers", to={"kind": "ray", "device": "cuda", "gpus": 2})
    with pytest.raises(StudyFileError, match="lies on one GPU"):
        load_study(tiny.file)


def test_a_source_alone_has_the_templates_pooler_under_the_templates_head(tmp_path: Path) -> None:
    """Its own pooler was not trained to be read by that head, and other sources have none."""
    tiny = make_rerank_study(tmp_path)
    study = load_study(tiny.file)
    assert POOLER in study.layout.places
    assert study.own_places("base") == frozenset(study.layout.places) - {HEAD, POOLER}
    assert study.own_places("reranker") == frozenset(study.layout.places)


def test_the_comparison_with_lora_and_mteb_refuse_re_rankers(tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path)
    with pytest.raises(StudyFileError, match="bi-encoders"):
        LimitedDataProtocol([parse_study(tiny.file)], tmp_path / "work", LimitedData(queries=5))
    with pytest.raises(EvaluationError, match="is a re-ranker"):
        evaluate_mteb(tmp_path / "reranker", ["NFCorpus"], out=tmp_path / "mteb")
