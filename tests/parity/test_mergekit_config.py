"""`mergekit_config.yml` of an export, merged by mergekit: the same weights, as near as its header says."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mergesearch import load_study
from mergesearch.recipe import MergeRecipe
from mergesearch.results.mergekit.filters import choose, write_filters
from mergesearch.results.mergekit.writing import ROUNDED, TO_THE_BIT, Configuration, mergekit_config
from mergesearch.study import Study
from mergesearch.workers.opening import open_merger
from tests.tiny_models import make_tiny, make_variant
from tests.tiny_studies import TinyStudy, make_study

pytest.importorskip("mergekit.merge", reason="mergekit is not installed (extra: parity)")

THIRDS = {"low": 0.2, "high": 0.8}
WEIGHTS = {"weight": THIRDS}
Case = tuple[str, int, bool, dict[str, Any], dict[str, Any]]
"""Method, sources, whether the retriever is the base, coefficients, options."""
CASES: list[Case] = [
    ("linear", 2, False, {"alpha": THIRDS}, {}),
    ("linear", 3, False, WEIGHTS, {}),
    ("linear", 3, False, WEIGHTS, {"normalize": False}),
    ("linear", 3, False, WEIGHTS, {"arithmetic": "mergekit"}),
    ("task_arithmetic", 3, True, {**WEIGHTS, "lambda": THIRDS}, {}),
    ("task_arithmetic", 3, True, {**WEIGHTS, "lambda": THIRDS}, {"arithmetic": "mergekit"}),
    ("re_adapt", 3, True, {"alpha": THIRDS, "beta": THIRDS}, {}),
    ("passthrough", 3, False, {"source": {"values": ["domain", "expert"]}, "scale": THIRDS}, {}),
    ("cocktail", 2, False, {"temperature": THIRDS, "loss": {"retriever": 1.0, "domain": 2.0}}, {}),
    ("ties", 3, True, {**WEIGHTS, "density": THIRDS, "lambda": THIRDS}, {"arithmetic": "mergekit"}),
    ("breadcrumbs", 3, True, {**WEIGHTS, "density": 0.6, "gamma": 0.1}, {"arithmetic": "mergekit"}),
    ("breadcrumbs_ties", 3, True, {**WEIGHTS, "density": 0.6}, {"arithmetic": "mergekit", "normalize": True}),
    ("sce", 3, True, {"select_topk": THIRDS}, {"arithmetic": "mergekit"}),
    ("slerp", 2, False, {"t": THIRDS}, {}),
    ("nuslerp", 2, False, WEIGHTS, {}),
    ("nuslerp", 2, False, WEIGHTS, {"flatten": False, "row_wise": True}),
    ("multislerp", 3, False, WEIGHTS, {}),
    ("nearswap", 2, True, {"t": {"low": 0.01, "high": 0.1}}, {}),
]
QUICK = {"linear", "ties", "slerp"}
"""What the default run merges; the others are slow together."""
GROUPS = {"segments": 2, "components": True, "final_norm": "own", "pooler": "own"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three relatives of every layout."""
    root = tmp_path_factory.mktemp("models")
    layouts = (
        ("bert", "bert", "auto"),
        ("roberta", "roberta", "auto"),
        ("distilbert", "distilbert", "auto"),
        ("modernbert", "modernbert", "auto"),
        ("mistral", "mistral", "auto"),
        ("causal", "mistral", "causal"),
    )
    for name, kind, head in layouts:
        first = make_tiny(kind, root / name / "retriever", n_layers=3, head=head)
        for seed, relative in enumerate(("domain", "expert"), 1):
            make_variant(first, root / name / relative, seed=seed)
    return root


@pytest.fixture
def tiny(tmp_path: Path) -> TinyStudy:
    return make_study(tmp_path)


def study_of(tiny: TinyStudy, models: Path, case: Case, groups: dict[str, Any] | None = None) -> Study:
    method, n, based, coefficients, options = case
    names = ("retriever", "domain", "expert")[:n]
    content = tiny.content()
    content["sources"] = {name: str(models / name) for name in names}
    content["merge"] = {
        "method": method,
        "template": "retriever",
        "groups": groups or GROUPS,
        "coefficients": coefficients,
        "options": options,
    } | ({"base": "retriever"} if based else {})
    tiny.write(content)
    return load_study(tiny.file)


def some_recipe(study: Study) -> MergeRecipe:
    """A recipe whose groups all have other coefficients."""
    space = study.space
    point = {d.name: d.from_unit((i * 0.37 + 0.13) % 1) for i, d in enumerate(space.dimensions)}
    return study.recipe(point)


def said(study: Study, recipe: MergeRecipe) -> Configuration:
    return mergekit_config(recipe, study.layout, study.checkpoints, study.folders)


def ours(study: Study, recipe: MergeRecipe) -> dict[str, torch.Tensor]:
    encoder, merger = open_merger(study.evaluator_spec())
    merger.apply(recipe)
    return {name: p.detach().clone() for name, p in encoder.parameters.items()}


def theirs(text: str, out: Path) -> dict[str, torch.Tensor]:
    """What mergekit makes of a configuration."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(quiet=True, write_model_card=False)
    with quiet():
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(out), options)
    found: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        found |= load_file(file)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def assert_equal(mine: dict[str, torch.Tensor], made: dict[str, torch.Tensor], tolerance: str) -> None:
    prefix = "model." if any(name.startswith("model.") for name in made) else ""
    for name, tensor in mine.items():
        other = made[prefix + name]
        assert other.dtype == tensor.dtype
        if tolerance == TO_THE_BIT:
            assert torch.equal(tensor, other), name
        else:
            share = 4e-5 if "4e-5" in tolerance else 2e-6
            slack = share + (torch.finfo(tensor.dtype).eps if tensor.dtype != torch.float32 else 0)
            assert (tensor - other).abs().max() <= slack * other.abs().max(), name


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=f"{c[0]}-{c[1]}-{'-'.join(c[4])}", marks=() if c[0] in QUICK else pytest.mark.slow)
        for c in CASES
    ],
)
def test_mergekit_makes_the_same_weights(tiny: TinyStudy, folders: Path, tmp_path: Path, case: Case) -> None:
    study = study_of(tiny, folders / "mistral", case)
    recipe = some_recipe(study)
    found = said(study, recipe)
    assert found.why_not == ""
    assert found.tolerance in found.text
    assert (found.tolerance == TO_THE_BIT) == (case[4].get("arithmetic") == "mergekit")
    assert_equal(ours(study, recipe), theirs(found.text, tmp_path / "out"), found.tolerance)


@pytest.mark.parametrize(
    "layout",
    ["bert", *(pytest.param(k, marks=pytest.mark.slow) for k in ("roberta", "distilbert", "modernbert", "causal"))],
)
def test_layouts_and_per_layer_groups(tiny: TinyStudy, folders: Path, tmp_path: Path, layout: str) -> None:
    groups = {"per_layer": True, "components": True, "embeddings": "own", "pooler": "own"}
    study = study_of(tiny, folders / layout, ("linear", 2, False, {"alpha": THIRDS}, {}), groups)
    recipe = some_recipe(study)
    found = said(study, recipe)
    assert_equal(ours(study, recipe), theirs(found.text, tmp_path / "out"), found.tolerance)


def test_one_group_needs_no_filters(tiny: TinyStudy, folders: Path) -> None:
    everywhere = {"segments": 1, "embeddings": "first_segment", "pooler": "last_segment"}
    study = study_of(tiny, folders / "mistral", ("slerp", 2, False, {"t": THIRDS}, {}), everywhere)
    config = yaml.safe_load(said(study, study.recipe({"t.segment_1": 0.25})).text)
    assert config["parameters"] == {"t": 0.25}
    assert config["base_model"] == str(folders / "mistral" / "retriever")


def test_halves_are_rounded_once(tiny: TinyStudy, folders: Path, tmp_path: Path) -> None:
    tiny.change("evaluation", "dtype", to="bfloat16")
    study = study_of(tiny, folders / "mistral", ("slerp", 2, False, {"t": THIRDS}, {}))
    recipe = some_recipe(study)
    found = said(study, recipe)
    assert "one rounding to bfloat16" in found.tolerance
    assert_equal(ours(study, recipe), theirs(found.text, tmp_path / "out"), found.tolerance)


@pytest.mark.parametrize(
    ("method", "n", "based", "coefficients", "said_so"),
    [
        ("ties", 3, True, {**WEIGHTS, "density": 0.5}, "`arithmetic: mergekit`"),
        ("dare_ties", 3, True, WEIGHTS, "random masks"),
        ("karcher", 2, False, WEIGHTS, "has no weights"),
        ("model_stock", 3, True, {"lambda": THIRDS}, "cannot leave a part (embeddings)"),
        ("arcee_fusion", 2, True, {"fence": {"low": 1, "high": 2}}, "near thresholds"),
    ],
)
def test_what_mergekit_does_otherwise_is_not_said(
    tiny: TinyStudy, folders: Path, method: str, n: int, based: bool, coefficients: dict[str, Any], said_so: str
) -> None:
    study = study_of(tiny, folders / "mistral", (method, n, based, coefficients, {}))
    found = said(study, some_recipe(study))
    assert said_so in found.why_not
    assert found.text == ""


@pytest.mark.slow
def test_model_stock_and_karcher_where_all_is_merged(tiny: TinyStudy, folders: Path, tmp_path: Path) -> None:
    everywhere = {"segments": 1, "embeddings": "first_segment", "pooler": "last_segment"}
    for method, based, name, value in (("model_stock", True, "lambda", 1.0), ("karcher", False, "weight", 0.5)):
        coefficients = {name: {"low": 0.5, "high": 1.0}}
        study = study_of(tiny, folders / "mistral", (method, 3, based, coefficients, {}), everywhere)
        recipe = study.recipe({d.name: value for d in study.space.dimensions})
        found = said(study, recipe)
        assert_equal(ours(study, recipe), theirs(found.text, tmp_path / method), found.tolerance)
    other = said(study, some_recipe(study))
    assert "has no weights" in other.why_not


def test_sources_that_are_stored_otherwise_are_not_said(tiny: TinyStudy, folders: Path, tmp_path: Path) -> None:
    case: Case = ("linear", 2, False, {"alpha": THIRDS}, {})
    mixed = tmp_path / "mixed"
    shutil.copytree(folders / "mistral" / "retriever", mixed / "retriever")
    shutil.copytree(folders / "causal" / "domain", mixed / "domain")
    study = study_of(tiny, mixed, case)
    assert "stored as MistralForCausalLM" in said(study, some_recipe(study)).why_not
    config = mixed / "retriever" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["MistralForX"]}), "utf-8")
    study = study_of(tiny, mixed, case)
    assert "not as a bare encoder" in said(study, some_recipe(study)).why_not


def test_filters_give_every_tensor_its_value() -> None:
    norms = {f"layers.{i}.input_layernorm.weight": float(i % 2) for i in range(12)}
    values = {**norms, "norm.weight": 5.0, "norm.bias": 1.0, "embed.weight": 0.0}
    filters = write_filters(values)
    assert {name: choose(filters, name) for name in values} == values
    assert write_filters(dict.fromkeys(values, 0.5)) == [(None, 0.5)]
    whole = {"a.b": 1.0, "x.a.b.c": 2.0, "a.b.c": 3.0, "b": 4.0}
    assert {name: choose(write_filters(whole), name) for name in whole} == whole
    assert ROUNDED != TO_THE_BIT
