"""What groups do to weights: every part of the model has the coefficients that its group was given, and no other."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch import export_merge, load_study, open_store, run_study
from mergesearch.errors import StudyFileError
from mergesearch.memory_planning import memory_plan
from mergesearch.sources.alignment import align
from mergesearch.sources.vocabulary import read_vocabulary
from mergesearch.workers.opening import open_merger
from tests.tiny_models import KINDS, WORDS, make_tiny, make_tokenizer
from tests.tiny_studies import TinyStudy, make_study

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.study import Study

Weights = dict[str, torch.Tensor]


def merge(study: Study, params: dict[str, float]) -> Weights:
    encoder, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe(params))
    return {name: tensor.detach().clone() for name, tensor in encoder.parameters.items()}


def of_source(study: Study, source: str) -> Weights:
    encoder, merger = open_merger(study.unmerged_spec())
    merger.apply(study.source_alone(source))
    return {name: tensor.detach().clone() for name, tensor in encoder.parameters.items()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_attention_mlp_and_norms_are_merged_apart(kind: str, tmp_path: Path) -> None:
    tiny = make_study(tmp_path, kind=kind)
    tiny.change("merge", "groups", to={"segments": 2, "components": True, "embeddings": "own"})
    study = load_study(tiny.file)
    names = [f"segment_{i}_{part}" for i in (1, 2) for part in ("attention", "mlp", "norms")]
    assert [d.name for d in study.space.dimensions] == ["alpha.embeddings", *(f"alpha.{name}" for name in names)]
    shares = {"attention": 1.0, "mlp": 0.0, "norms": 0.5}
    merged = merge(study, {"alpha.embeddings": 1.0} | {f"alpha.{n}": shares[n.rpartition("_")[2]] for n in names})
    retriever, domain = of_source(study, "retriever"), of_source(study, "domain")
    for name, parameter in study.layout.parameters.items():
        outside = {"embeddings": 1.0, "final_norm": 0.5, "pooler": 1.0}
        share = outside.get(parameter.place, shares.get(parameter.place.rpartition(".")[2], -1.0))
        torch.testing.assert_close(merged[name], torch.lerp(domain[name], retriever[name], share), rtol=1e-6, atol=1e-7)


def test_a_gradient_falls_over_the_layers(tmp_path: Path) -> None:
    tiny = make_study(tmp_path, n_layers=3)
    tiny.change("merge", "groups", to={"per_layer": True, "components": True, "embeddings": "own", "pooler": "own"})
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "knots": 2}})
    study = load_study(tiny.file)
    assert {a.name: a.params for a in study.anchors()} == {
        "retriever alone": {"alpha.knot_1": 1, "alpha.knot_2": 1},
        "domain alone": {"alpha.knot_1": 0, "alpha.knot_2": 0},
        "uniform average": {"alpha.knot_1": 0.5, "alpha.knot_2": 0.5},
    }
    merged = merge(study, {"alpha.knot_1": 1.0, "alpha.knot_2": 0.5})
    retriever, domain = of_source(study, "retriever"), of_source(study, "domain")
    share = {"embeddings": 1.0, "layer.0": 1.0, "layer.1": 0.75, "layer.2": 0.5, "pooler": 0.5}
    for name, parameter in study.layout.parameters.items():
        expected = torch.lerp(domain[name], retriever[name], share[".".join(parameter.place.split(".")[:2])])
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=1e-7)


def test_gradients_and_their_depths_are_score_relevant(tmp_path: Path) -> None:
    tiny = make_study(tmp_path, n_layers=4)
    tiny.change("merge", "groups", to={"boundaries": [1]})
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "knots": 2}})
    one = load_study(tiny.file).space.to_dict()
    other = load_study(tiny.change("merge", "groups", to={"boundaries": [2]}).file).space.to_dict()
    assert one != other


def with_other_tokens(tmp_path: Path, kind: str = "bert", **config: int) -> TinyStudy:
    """A study whose domain model has some of the template's tokens, in other rows, and some of its own."""
    tiny = make_study(tmp_path, kind=kind)
    shutil.rmtree(tiny.folder / "domain")
    words = ["zymurgy", *reversed(WORDS[3:]), "quark", "fjord"]
    made = make_tokenizer(kind, words)
    size = {"vocab_size": len(made) + 5}
    make_tiny(kind, tiny.folder / "domain", n_layers=2, seed=9, words=words, config={**size, **config})
    return tiny.change("merge", "groups", to={"segments": 1, "embeddings": "own"})


@pytest.mark.parametrize("kind", ["bert", "t5", "modernbert", "mistral"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_merged_over_shared_tokens(kind: str, normalize: bool, tmp_path: Path) -> None:
    tiny = with_other_tokens(tmp_path, kind)
    tiny.change("merge", "other_vocabulary", to="shared_tokens")
    tiny.change("merge", "options", to={"normalize": normalize})
    tiny.change("merge", "coefficients", to={"weight": {"low": -1, "high": 3}})
    study = load_study(tiny.file)
    assert study.shared is not None
    assert any("rows belong to tokens that all sources have" in note for note in study.notes())
    weights = {
        f"weight.{source}.{group}": 1.5 for source in ("retriever", "domain") for group in ("embeddings", "segment_1")
    }
    merged = merge(study, weights)
    table = study.layout.word_embeddings
    total = 3.0 if normalize else 1.0
    raw = {s: study.checkpoints[s].read(align(study.checkpoints[s], study.layout)[table]) for s in study.folders}
    tokens = {s: read_vocabulary(study.folders[s]) or {} for s in study.folders}
    assert len(raw["domain"]) == len(tokens["domain"]) + 5, "padded, as many models are"
    expected = raw["retriever"].clone()
    common = tokens["retriever"].keys() & tokens["domain"].keys()
    assert common < tokens["retriever"].keys()
    for token in common:
        rows = raw["retriever"][tokens["retriever"][token]], raw["domain"][tokens["domain"][token]]
        expected[tokens["retriever"][token]] = 1.5 / total * (rows[0] + rows[1])
    torch.testing.assert_close(merged[table], expected, rtol=1e-6, atol=1e-6)
    alone = [row for token, row in tokens["retriever"].items() if token not in common]
    assert torch.equal(merged[table][alone], raw["retriever"][alone]), "not a bit of them is merged"

    alphabet = of_source(study, "domain")
    assert torch.equal(alphabet[table][alone], raw["retriever"][alone])
    token = next(iter(common))
    assert torch.equal(alphabet[table][tokens["retriever"][token]], raw["domain"][tokens["domain"][token]])
    back = of_source(study, "retriever")
    assert torch.equal(back[table], raw["retriever"])


def test_recipes_know_which_rows_were_merged(tmp_path: Path) -> None:
    """Tokenizers are no part of a source's weights, but they decide what its rows mean."""
    tiny = with_other_tokens(tmp_path).change("merge", "other_vocabulary", to="shared_tokens")
    tiny.change("merge", "coefficients", "alpha", to={"low": 0, "high": 1, "tie": "groups"})
    study = load_study(tiny.file)
    file = tiny.folder / "domain" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["search"], vocabulary["model"] = vocabulary["model"], vocabulary["search"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    other = load_study(tiny.file)
    assert study.recipe({"alpha": 0.5}).fingerprint != other.recipe({"alpha": 0.5}).fingerprint
    assert study.score_relevant() != other.score_relevant()


def test_equal_vocabularies_are_merged_whole(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("merge", "groups", "embeddings", to="own")
    plain = load_study(tiny.file)
    shared = load_study(tiny.change("merge", "other_vocabulary", to="shared_tokens").file)
    assert shared.shared is None
    assert shared.score_relevant() == plain.score_relevant()


def test_memory_of_shared_rows_is_planned(tmp_path: Path) -> None:
    tiny = with_other_tokens(tmp_path).change("merge", "other_vocabulary", to="shared_tokens")
    study = load_study(tiny.file)
    assert study.shared is not None
    hidden, dropped = study.layout.hidden_size, study.layout.vocab_size - len(study.shared)
    n = sum(math.prod(p.shape) for p in study.layout.parameters.values())
    memory = memory_plan(study)
    pooler = sum(math.prod(study.layout.parameters[p].shape) for p in study.layout.names("pooler"))
    assert memory.sources == 2 * 4 * len(study.shared) * hidden  # the rest stays in the files
    assert memory.sources + memory.mapped == 2 * 4 * (n - pooler - dropped * hidden)
    assert memory.model == 4 * (n + len(study.shared) * hidden)


def test_layers_alone_are_merged_and_other_embeddings_never_read(tmp_path: Path) -> None:
    tiny = with_other_tokens(tmp_path).change("merge", "groups", "embeddings", to="template")
    file = tiny.folder / "domain" / "model.safetensors"
    tensors = load_file(file)
    tensors["embeddings.word_embeddings.weight"].fill_(torch.nan)
    save_file(tensors, file, metadata={"format": "pt"})
    study = load_study(tiny.change("merge", "other_vocabulary", to="template").file)
    merged = merge(study, {"alpha.segment_1": 0.0})
    retriever = of_source(study, "retriever")
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(merged[study.layout.word_embeddings], retriever[study.layout.word_embeddings])
    assert torch.equal(merged[name], tensors[name])


@pytest.mark.parametrize(
    ("how", "embeddings", "expected"),
    [
        (None, "own", "Write `merge.other_vocabulary: shared_tokens` to merge the embeddings"),
        (None, "template", "Write `merge.other_vocabulary: template` to merge the layers all the same"),
        ("template", "own", "`template` leaves the embeddings to the template: write `embeddings: template`"),
        ("shared_tokens", "template", "`shared_tokens` merges embeddings: give them another rule under `groups`"),
        ("ignore", "template", "'refuse', 'template' or 'shared_tokens'"),
    ],
)
def test_anything_else_is_an_error_that_says_which(
    how: str | None, embeddings: str, expected: str, tmp_path: Path
) -> None:
    tiny = with_other_tokens(tmp_path).change("merge", "groups", "embeddings", to=embeddings)
    if how is not None:
        tiny.change("merge", "other_vocabulary", to=how)
    with pytest.raises(StudyFileError) as caught:
        load_study(tiny.file)
    message = str(caught.value)
    where = "domain: domain" if how is None else "other_vocabulary:"
    assert f"{tiny.line_of(where)}: " in message
    assert expected in message
    if how is None:
        assert "missing: 'and', 'of', 'the'; new: 'fjord', 'quark', 'zymurgy'" in message


def test_a_merge_over_shared_tokens_is_scored_and_exported(tmp_path: Path) -> None:
    tiny = with_other_tokens(tmp_path).change("merge", "other_vocabulary", to="shared_tokens")
    tiny.change("search", to={"strategy": "random", "trials": 1, "enqueue": ["uniform"]})
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store)
        exported = export_merge(study, store, tmp_path / "merged")
        assert exported.rescored == pytest.approx(exported.recorded, abs=1e-4)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(
        merged["embeddings.word_embeddings.weight"],
        merge(study, dict.fromkeys(study.space.by_name, 0.5))["embeddings.word_embeddings.weight"],
    )
