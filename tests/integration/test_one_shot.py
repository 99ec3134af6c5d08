"""Merges without a search: the methods' own coefficients, what is set by hand, and refusals before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from mergesearch.cli.merge import _value
from mergesearch.errors import StudyFileError
from mergesearch.merging.registry import METHODS
from mergesearch.recipe import MergeRecipe
from mergesearch.results import unscored
from mergesearch.results.one_shot import ask_in_study, ask_merge, merge_once, resolve_once
from mergesearch.study_file import parse_study
from tests.tiny_models import WORDS, make_tiny, make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """With a base and an expert beside retriever and domain."""
    made = make_study(tmp_path_factory.mktemp("study"))
    for seed, name in enumerate(("base", "expert"), 2):
        make_variant(made.folder / "retriever", made.folder / name, seed=seed)
    return made


@pytest.fixture
def models(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Retriever and domain as the current folder has them."""
    monkeypatch.chdir(tiny.folder)
    return {"retriever": "retriever", "domain": "domain"}


def weights_of(folder: Path | str) -> Mapping[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def coefficients(recipe: MergeRecipe) -> dict[str, Any]:
    return {g.name: dict(g.coefficients) for g in recipe.groups if g.copy_from is None}


def problems_of(*arguments: object) -> str:
    """What a refused command says; nothing of a weight was read for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unscored, "open_merger", lambda spec: pytest.fail("weights were read"))
        answer = mergesearch("merge", *arguments, "--out", "refused")
    assert answer.code == 2
    assert not Path("refused").exists()
    return answer.err


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_merges_with_what_it_declares(method: Any, models: dict[str, str]) -> None:
    """Or says which coefficient has to be given."""
    sources = dict(list(models.items())[: method.max_sources])
    settings: dict[str, Any] = {f"loss.{name}": 1.0 for name in sources} if method.measured else {}
    base = "base" if method.needs_base else None
    if method.one_shot is None:
        with pytest.raises(StudyFileError, match="source"):
            resolve_once(ask_merge(sources, method=method.name, base=base))
        settings["source"] = "domain"
    _, recipe, origin = resolve_once(ask_merge(sources, method=method.name, base=base, settings=settings))
    method.check(recipe)
    (merged,) = coefficients(recipe).values()
    for name, value in (method.one_shot.coefficients if method.one_shot else {}).items():
        expected = 1 / len(sources) if value == "1/n" else value
        per_source = method.coefficients[name].per_source
        assert merged[name] == (dict.fromkeys(sources, expected) if per_source else expected)
    assert origin == (method.one_shot.origin if method.one_shot else "")


def test_a_one_shot_merge_is_the_arithmetic_of_its_coefficients(models: dict[str, str], tmp_path: Path) -> None:
    """Task arithmetic with α = 1, by hand; embeddings are merged as the layers are, the pooler is the template's."""
    made = merge_once(ask_merge(models, method="task_arithmetic", base="base"), tmp_path / "merged", device="cpu")
    retriever, domain, base = (weights_of(name) for name in ("retriever", "domain", "base"))
    for name, tensor in weights_of(made.folder).items():
        stored = name if name in retriever else f"bert.{name}"
        expected = retriever[stored] + domain[stored] - base[stored]
        torch.testing.assert_close(tensor, retriever[stored] if "pooler" in name else expected, atol=1e-6, rtol=1e-5)


def test_the_folder_loads_everywhere_and_says_that_nothing_was_scored(models: dict[str, str], tmp_path: Path) -> None:
    arguments = [f"--source={name}={where}" for name, where in models.items()]
    out = tmp_path / "merged"
    answer = mergesearch("merge", *arguments, "--out", out)
    assert answer.code == 0, answer.err
    assert "nothing was scored" in answer.out
    assert "weight[retriever] = 0.5, weight[domain] = 0.5" in answer.out
    assert "declared for one shot: the paper's uniform soup" in answer.out
    embeddings = SentenceTransformer(str(out), device="cpu").encode(["graph search"])
    assert embeddings.shape[0] == 1
    assert AutoModel.from_pretrained(out).num_parameters() > 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Nothing was scored" in card
    assert "the paper's uniform soup" in card
    assert "Scores on the dev split" not in card
    told = json.loads((out / "mergesearch.json").read_text(encoding="utf-8"))
    assert "dev" not in told
    assert "test" not in told
    again = mergesearch("merge", out / "mergesearch.json", "--out", tmp_path / "again")
    assert again.code == 0, again.err
    assert "as in the export" in again.out


def test_what_is_set_by_hand_wins(models: dict[str, str]) -> None:
    def asked(**given: Any) -> dict[str, Any]:
        (merged,) = coefficients(resolve_once(ask_merge(models, **given))[1]).values()
        return merged

    assert asked(settings={"weight.domain": 0.25}) == {"weight": {"retriever": 0.5, "domain": 0.25}}
    assert asked(settings={"weight": 2}) == {"weight": {"retriever": 2, "domain": 2}}
    assert asked(settings={"alpha": 0.75}) == {"weight": {"retriever": 0.75, "domain": 0.25}}
    assert asked(method="slerp", settings={"t": 0.125}) == {"t": 0.125}
    _, recipe, _ = resolve_once(
        ask_merge(models, method="ties", base="base", settings={"normalize": False, "lambda": 0.5})
    )
    assert recipe.options == {"normalize": False}
    _, recipe, origin = resolve_once(ask_merge(models, settings={"weight": 0.5}))
    assert origin == ""  # nothing was left to the method
    copied = resolve_once(ask_merge(models, embeddings="template"))[1]
    assert {g.copy_from for g in copied.groups if "embeddings" in g.places} == {"retriever"}
    assert [_value(t) for t in ("1", "-.5", "1e-3", "true", "False", "domain")] == [
        1,
        -0.5,
        1e-3,
        True,
        False,
        "domain",
    ]


def test_a_study_gives_sources_and_what_it_fixes(tiny: TinyStudy, tmp_path: Path) -> None:
    """Its collections need not be there: they are not looked at."""
    study = copy_study(tiny, tmp_path / "study")
    study.change("evaluation", "collections", 0, "folder", to="nowhere")
    study.change("sources", to={name: name for name in ("retriever", "domain", "expert")})
    weight = {
        "retriever": 1.0,
        "domain": {"low": 0, "high": 1},
        "expert": {"segment_1": 0, "segment_2": {"low": 0, "high": 1}},
    }
    study.change("merge", "coefficients", to={"weight": weight})

    def asked(**settings: float) -> dict[str, Any]:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        return coefficients(resolve_once(ask_in_study(parse_study(study.file), named))[1])

    third = pytest.approx(1 / 3)
    assert asked() == {
        "segment_1": {"weight": {"retriever": 1, "domain": third, "expert": 0}},
        "segment_2": {"weight": {"retriever": 1, "domain": third, "expert": third}},
    }
    assert asked(weight__domain__segment_2=0.75, weight__expert=0.125) == {
        "segment_1": {"weight": {"retriever": 1, "domain": third, "expert": 0.125}},
        "segment_2": {"weight": {"retriever": 1, "domain": 0.75, "expert": 0.125}},
    }
    out = tmp_path / "merged"
    answer = mergesearch("merge", study.file, "--set", "weight.domain=0.4", "--out", out)
    assert answer.code == 0, answer.err
    assert json.loads((out / "mergesearch.json").read_text(encoding="utf-8"))["study"] == "tiny"
    assert not (study.folder / "study.db").exists()


def test_a_grid_over_alpha_becomes_the_average_or_what_is_set(tiny: TinyStudy) -> None:
    parsed = parse_study(tiny.file)
    half = {"weight": {"retriever": 0.5, "domain": 0.5}}
    assert coefficients(resolve_once(ask_in_study(parsed))[1]) == {"segment_1": half, "segment_2": half}
    found = coefficients(resolve_once(ask_in_study(parsed, {"alpha.segment_1": 0.75}))[1])
    assert found == {"segment_1": {"weight": {"retriever": 0.75, "domain": 0.25}}, "segment_2": half}
    found = coefficients(resolve_once(ask_in_study(parsed, {"weight": 1}))[1])
    assert found["segment_1"] == {"weight": {"retriever": 1, "domain": 1}}


def test_losses_are_measured_on_the_study_s_examples(tiny: TinyStudy, tmp_path: Path) -> None:
    study = copy_study(tiny, tmp_path / "study")
    study.change("sources", to={name: name for name in ("retriever", "domain", "expert")})
    study.change("merge", "method", to="cocktail").change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    study.change("merge", "examples", to={"collection": {"folder": "collection", "split": "dev"}, "n": 3})
    study.change("evaluation", "collections", 0, "split", to="dev")
    losses: dict[str, float] = {}
    made = merge_once(
        ask_in_study(parse_study(study.file)), tmp_path / "merged", on_loss=losses.__setitem__, device="cpu"
    )
    assert set(losses) == {"domain", "expert"}
    (group, *_) = coefficients(made.recipe).values()
    assert group["loss"] == losses
    assert (group["alpha"], group["temperature"]) == (0.5, 5)


def test_everything_that_is_wrong_is_said_at_once(models: dict[str, str], tiny: TinyStudy, tmp_path: Path) -> None:
    make_tiny("bert", tmp_path / "wide", n_layers=3)
    make_tiny("bert", tmp_path / "words", n_layers=2, words=WORDS[::-1])
    told = problems_of(
        "--method", "ties", "--source", "retriever=retriever", "--source", f"wide={tmp_path / 'wide'}",
        "--source", f"words={tmp_path / 'words'}", "--source", "gone=./nowhere",
        "--set", "wieght=1", "--set", "density=2",
    )  # fmt: skip
    for part in (
        "this merge cannot be made:",
        "--method: ties takes task vectors from a base: name one with --base",
        "--source gone: no folder",
        "--set wieght: unknown coefficient or option of ties 'wieght'. Did you mean 'weight'?",
        "--set density: 2 is outside of what the method allows, 0 to 1",
    ):
        assert part in told
    told = problems_of(
        "--source", "retriever=retriever", "--source", f"wide={tmp_path / 'wide'}", "--source",
        f"words={tmp_path / 'words'}", "--base", "base",
    )  # fmt: skip
    for part in (
        "--base: linear has no base",
        "--source wide: ",
        "--source words: ",
        "--other-vocabulary shared_tokens",
    ):
        assert part in told
    assert "unknown source 'retreiver'. Did you mean 'retriever'" in problems_of(
        "--source", "retriever=retriever", "--source", "domain=domain", "--template", "retreiver"
    )
    told = problems_of("--source", "a=retriever", "--source", "b=domain", "--set", "weight.c=1", "--set", "weight.a=x")
    assert "--set weight.c: unknown source or group 'c'" in told
    assert "--set weight.a: expected a number, found 'x'" in told
    told = problems_of(tiny.file, "--set", "weight.domain.segment_3=1")
    assert "unknown source or group 'segment_3'. Did you mean 'segment_2'" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name what to merge"),
        (["--source", "retriever"], "--source takes NAME=MODEL"),
        (["--source", "a=x", "--source", "a=y"], "names 'a' twice"),
        (["study.yaml", "--method", "ties"], "a study file says so itself: --method"),
        (["study.yaml", "--source", "a=b"], "the study file names the sources"),
        (["recipe.json", "--set", "weight=1"], "a recipe is followed as it is"),
        (["recipe.json", "--other-vocabulary", "template"], "a recipe says so itself: --other-vocabulary"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], told: str, models: dict[str, str]) -> None:
    assert told in problems_of(*arguments)


def test_weights_that_are_no_numbers_are_refused(models: dict[str, str], tiny: TinyStudy, tmp_path: Path) -> None:
    broken = copy_study(tiny, tmp_path / "broken").folder
    weights = dict(weights_of(broken / "domain"))
    name = next(n for n in weights if n.endswith("layer.0.attention.self.query.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, broken / "domain" / "model.safetensors", {"format": "pt"})
    answer = mergesearch(
        "merge", "--source", "retriever=retriever", "--source", f"domain={broken / 'domain'}", "--out", tmp_path / "out"
    )
    assert answer.code == 6
    assert not (tmp_path / "out").exists()
