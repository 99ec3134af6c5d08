"""Configurations of mergekit as studies: the imported study's first trial is the merge that mergekit itself makes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from mergesearch import load_study, open_store, run_study
from mergesearch.results.mergekit.importing import import_mergekit
from mergesearch.results.mergekit.writing import ROUNDED, TO_THE_BIT, mergekit_config
from mergesearch.study import Study
from tests.parity.test_mergekit_config import assert_equal, ours, theirs
from tests.tiny_models import make_tiny, make_variant
from tests.tiny_studies import make_beir

pytest.importorskip("mergekit.merge", reason="mergekit is not installed (extra: parity)")

THREE = """
models:
  - model: retriever
  - model: domain
    parameters: {%s}
  - model: expert
    parameters: {%s}
base_model: retriever
dtype: float32
merge_method: """
CONFIGS = {
    "linear": """
merge_method: linear
models:
  - {model: domain, parameters: {weight: 1.0}}
  - {model: expert, parameters: {weight: 0.3}}
dtype: float32
""",
    "linear with weights that are not divided": """
merge_method: linear
models:
  - {model: domain, parameters: {weight: 0.7}}
  - {model: expert, parameters: {weight: -0.1}}
parameters: {normalize: false}
dtype: float32
""",
    "linear with gradients": """
merge_method: linear
models:
  - {model: domain, parameters: {weight: [0.2, 0.8, 0.5]}}
  - {model: expert, parameters: {weight: [1, 2]}}
dtype: float32
""",
    "slerp as everybody writes it": """
merge_method: slerp
slices:
  - sources:
      - {model: retriever, layer_range: [0, 3]}
      - {model: domain, layer_range: [0, 3]}
base_model: retriever
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: float32
""",
    "slices with numbers of their own": """
merge_method: linear
slices:
  - sources:
      - {model: retriever, layer_range: [0, 1], parameters: {weight: 0.4}}
      - {model: domain, layer_range: [0, 1], parameters: {weight: 0.6}}
  - sources:
      - {model: retriever, layer_range: [1, 3]}
      - {model: domain, layer_range: [1, 3], parameters: {weight: [0.1, 0.9]}}
    parameters: {weight: 0.25}
dtype: float32
""",
    "task_arithmetic": THREE % ("weight: 0.5", "weight: -0.3") + "task_arithmetic\nparameters: {lambda: 0.8}",
    "ties": THREE % ("weight: 0.5, density: 0.5", "weight: [0.2, 1.0], density: 0.3") + "ties",
    "ties without normalize": THREE % ("weight: 0.5, density: 0.5", "weight: 0.4, density: 0.3")
    + "ties\nparameters: {normalize: false, int8_mask: true}",
    "breadcrumbs": THREE % ("weight: 0.5, density: 0.5", "weight: 0.4, density: 0.3, gamma: 0.05") + "breadcrumbs",
    "model_stock": THREE % ("", "") + "model_stock",
    "model_stock by rows": THREE % ("", "") + "model_stock\nparameters: {filter_wise: true}",
    "sce": THREE % ("", "") + "sce\nparameters: {select_topk: 0.4}",
    "ram": THREE % ("", "") + "ram",
    "karcher": THREE % ("", "") + "karcher\nparameters: {max_iter: 5}",
    "nuslerp": """
merge_method: nuslerp
models:
  - {model: domain, parameters: {weight: 0.3}}
  - {model: expert, parameters: {weight: [0.5, 0.9]}}
parameters: {nuslerp_flatten: false}
dtype: float32
""",
    "multislerp": THREE % ("weight: 0.5", "weight: 0.4") + "multislerp",
    "one tensor table apart": """
merge_method: linear
models:
  - {model: domain, parameters: {weight: [{filter: embed_tokens, value: 0}, {value: [0.5, 0.7]}]}}
  - {model: expert, parameters: {weight: 1}}
dtype: float32
""",
}
QUICK = ("linear with gradients", "slerp as everybody writes it", "ties")
"""What the default run merges; the others are slow together."""
EXACT = {"linear", "task_arithmetic", "ties", "breadcrumbs", "sce"}
"""Methods that here can round as mergekit does."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    first = make_tiny("mistral", root / "retriever", n_layers=3)
    for seed, name in enumerate(("domain", "expert"), 1):
        make_variant(first, root / name, seed=seed)
    make_beir(root / "collection")
    return root


@pytest.fixture(autouse=True)
def _there(folder: Path) -> Iterator[None]:
    """mergekit's paths start in the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def imported(folder: Path, tmp_path: Path, text: str, *, exact: bool = False) -> Study:
    (tmp_path / "merge.yml").write_text(text, encoding="utf-8")
    made = import_mergekit(tmp_path / "merge.yml", folder=tmp_path, collection=str(folder / "collection"))
    (tmp_path / "study.yaml").write_text(made.text, encoding="utf-8")
    if exact:
        content = YAML(typ="safe").load(made.text)
        content["merge"].setdefault("options", {})["arithmetic"] = "mergekit"
        with (tmp_path / "study.yaml").open("w", encoding="utf-8") as out:
            YAML().dump(content, out)
    return load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS])
def test_the_first_trial_is_mergekits_own_merge(folder: Path, tmp_path: Path, name: str) -> None:
    method = name.split()[0]
    study = imported(folder, tmp_path, CONFIGS[name], exact=study_can_round(CONFIGS[name]))
    first = study.anchors()[0]
    assert first.params is not None
    assert study.space.size() != 1
    recipe = study.recipe_of(first.coefficients)
    found = theirs(CONFIGS[name], tmp_path / "out")
    tolerance = TO_THE_BIT if study_can_round(CONFIGS[name]) else ROUNDED
    assert_equal(ours(study, recipe), found, tolerance)
    if method == "slerp":  # and it is said in mergekit's language again
        again = mergekit_config(recipe, study.layout, study.checkpoints, study.folders)
        assert_equal(ours(study, recipe), theirs(again.text, tmp_path / "again"), ROUNDED)


def study_can_round(text: str) -> bool:
    return any(f"merge_method: {method}\n" in f"{text}\n" for method in EXACT)


@pytest.mark.slow
def test_an_imported_study_runs_and_scores_the_merge_itself_first(folder: Path, tmp_path: Path) -> None:
    study = imported(folder, tmp_path, CONFIGS["slerp as everybody writes it"].replace("float32", "bfloat16"))
    with open_store(study, f"sqlite:///{tmp_path}/study.db") as store:
        run_study(replace_trials(study, tmp_path, 4), store)
        first = store.trials()[0]
        assert first.value is not None
        assert store.recipe(0) == study.recipe_of(study.anchors()[0].coefficients)


def replace_trials(study: Study, tmp_path: Path, n: int) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(study.parsed.text.replace("trials: 40", f"trials: {n}"), encoding="utf-8")
    return load_study(file)


def test_random_masks_keep_the_numbers_and_are_said_to_be_others(folder: Path, tmp_path: Path) -> None:
    text = THREE % ("weight: 0.5, density: 0.5", "weight: 0.4, density: [0.3, 0.6]") + "dare_ties"
    study = imported(folder, tmp_path, text)
    coefficients = study.anchors()[0].coefficients
    assert coefficients["layer_2"]["density"] == {"domain": 0.5, "expert": 0.6}
    assert "draws random masks" in (tmp_path / "study.yaml").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_models_head_goes_with_its_names(folder: Path, tmp_path: Path) -> None:
    """mergekit's filters see `model.layers.0…` in a checkpoint with a head, and the last slice's numbers count last."""
    for seed, name in enumerate(("a", "b")):
        origin = make_tiny("llama", tmp_path / "origin", n_layers=3, head="causal") if not seed else tmp_path / "a"
        make_variant(origin, tmp_path / name, seed=seed)
    text = f"""
merge_method: linear
slices:
  - sources:
      - {{model: {tmp_path}/a, layer_range: [0, 2], parameters: {{weight: 0.4}}}}
      - {{model: {tmp_path}/b, layer_range: [0, 2], parameters: {{weight: 0.6}}}}
  - sources:
      - {{model: {tmp_path}/a, layer_range: [2, 3]}}
      - model: {tmp_path}/b
        layer_range: [2, 3]
        parameters: {{weight: [{{filter: model.layers.2, value: 3}}, {{value: 2}}]}}
    parameters: {{weight: 1}}
dtype: float32
"""
    study = imported(folder, tmp_path, text)
    assert_equal(ours(study, study.recipe_of(study.anchors()[0].coefficients)), theirs(text, tmp_path / "out"), ROUNDED)


@pytest.mark.slow
def test_dtypes_are_the_studys(folder: Path, tmp_path: Path) -> None:
    text = CONFIGS["linear"].replace("float32", "bfloat16")
    study = imported(folder, tmp_path, text)
    recipe = study.recipe_of(study.anchors()[0].coefficients)
    assert recipe.dtype == "bfloat16"
    for name, tensor in ours(study, recipe).items():
        assert (tensor - theirs(text, tmp_path / "out")[name]).abs().max() <= 2**-7 * tensor.abs().max()
        assert tensor.dtype == torch.bfloat16
