"""Exports made again from their recipes alone: the same weights and files, or a refusal that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from mergesearch import export_merge, merge_recipe
from mergesearch.errors import ExportError
from mergesearch.results.folder import RECIPE_FILE
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from tests.integration.test_export import files_of, scored
from tests.tiny_adapters import make_adapter
from tests.tiny_models import WORDS, make_tiny, make_variant
from tests.tiny_studies import TinyStudy, make_study, mergesearch

LICENCE = "---\nlicense: mit\n---\n"


def own_words(folder: Path) -> Path:
    """A model with a vocabulary of its own, of the layout of `make_study`."""
    shutil.rmtree(folder)
    return make_tiny("bert", folder, n_layers=2, seed=1, words=WORDS[::-1][:40])


def export(tiny: TinyStudy, trial: int) -> Path:
    with scored(tiny) as (study, store):
        return export_merge(study, store, tiny.folder / "merged", trial=trial).folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Sources are named by where they lie, so that recipes find them from any folder."""
    made = make_study(tmp_path_factory.mktemp("study"))
    for name in ("retriever", "domain"):
        (made.folder / name / "README.md").write_text(LICENCE, encoding="utf-8")
        made.change("sources", name, to=str(made.folder / name))
    return made.change("search", "trials", to=3)


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy) -> Iterator[tuple[Study, StudyStore]]:
    with scored(tiny) as found:
        yield found


@pytest.fixture(scope="module")
def merged(finished: tuple[Study, StudyStore], tiny: TinyStudy) -> Path:
    study, store = finished
    return export_merge(study, store, tiny.folder / "merged", trial=2).folder


def assert_made_again(one: Path, other: Path) -> None:
    """All files but the recipe's are byte for byte the same, and in that only dates differ."""
    assert files_of(one) == files_of(other)
    for name in files_of(one) - {RECIPE_FILE}:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    before, after = (json.loads((f / RECIPE_FILE).read_text(encoding="utf-8")) for f in (one, other))
    assert {**before, "exported_at": None} == {**after, "exported_at": None}


def test_an_export_is_made_again_from_its_file(merged: Path, tmp_path: Path) -> None:
    answer = mergesearch("merge", merged / RECIPE_FILE, "--out", tmp_path / "again")
    assert answer.code == 0, answer.err
    assert "as in the export" in answer.out
    assert "warning" not in answer.err
    assert_made_again(merged, tmp_path / "again")
    assert mergesearch("merge", merged / RECIPE_FILE, "--out", tmp_path / "again").code == 6
    assert mergesearch("merge", merged / RECIPE_FILE, "--out", tmp_path / "again", "--force").code == 0


def test_a_recipe_alone_will_do(merged: Path, tmp_path: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    (tmp_path / "recipe.json").write_text(json.dumps(found["recipe"]), encoding="utf-8")
    made = merge_recipe(tmp_path / "recipe.json", tmp_path / "again")
    assert (made.weights, made.same, made.warnings) == (found["weights"], False, ())
    assert files_of(made.folder) == files_of(merged)
    again = merge_recipe(made.folder / RECIPE_FILE, tmp_path / "third")
    assert (again.weights, again.same) == (found["weights"], True)


def test_sources_that_moved_are_named(merged: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    for ref in found["recipe"]["sources"]:
        ref["location"] = f"models/{ref['name']}-is-not-here"  # it might be on the hub, and somebody else's
    file = tmp_path / "gone.json"
    file.write_text(json.dumps(found), encoding="utf-8")
    refused = mergesearch("merge", file, "--out", tmp_path / "again")
    assert refused.code == 6
    assert "--source retriever=FOLDER" in refused.err
    assert "--source domain=FOLDER" in refused.err
    assert "hub" not in refused.err
    moved = {name: str(tiny.folder / name) for name in ("retriever", "domain")}
    assert merge_recipe(file, tmp_path / "again", sources=moved).same
    for arguments, said in (
        (["--source", "domaim=x"], "Did you mean 'domain'"),
        (["--source", "domain"], "NAME=MODEL"),
    ):
        wrong = mergesearch("merge", file, "--out", tmp_path / "third", *arguments)
        assert wrong.code in (2, 6)
        assert said in wrong.err


def test_a_folder_that_was_named_by_the_user_is_no_model_of_the_hub(
    merged: Path, tiny: TinyStudy, tmp_path: Path
) -> None:
    recipe = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))["recipe"]
    for ref in recipe["sources"]:
        ref["location"] = f"models/{ref['name']}"
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    made = merge_recipe(tmp_path / "recipe.json", tmp_path / "again", sources=dict_of_folders(tiny))
    card = ModelCard.load(made.folder / "README.md")
    assert card.data.base_model is None


@pytest.mark.parametrize(
    "missing",
    ["encoding.given_prompts", "encoding.scored_length", "sources.domain.licence", "made_on.threads", "mergekit"],
)
def test_what_earlier_exports_did_not_write_is_found_out_again(merged: Path, tmp_path: Path, missing: str) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    forget(found, missing)
    (tmp_path / "earlier.json").write_text(json.dumps(found), encoding="utf-8")
    made = merge_recipe(tmp_path / "earlier.json", tmp_path / "again")
    assert made.same
    assert (made.folder / "README.md").read_bytes() == (merged / "README.md").read_bytes()


def test_what_cannot_be_found_out_again_is_told(merged: Path, tmp_path: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    forget(found, "dev.collections")
    (tmp_path / "earlier.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ExportError, match=r"'collections'.*its `recipe` alone"):
        merge_recipe(tmp_path / "earlier.json", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_merge_from_a_gpu_says_what_to_do_without_one(merged: Path, tmp_path: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    found["made_on"]["device"] = "cuda"
    (tmp_path / "gpu.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ExportError, match="no CUDA GPU here: give --device cpu"):
        merge_recipe(tmp_path / "gpu.json", tmp_path / "again")
    assert merge_recipe(tmp_path / "gpu.json", tmp_path / "again", device="cpu").same


def forget(found: dict[str, Any], entry: str) -> None:
    *above, last = entry.split(".")
    for key in above:
        found = found[key]
    del found[last]


def test_a_source_that_holds_something_else_is_refused_by_name(merged: Path, tiny: TinyStudy, tmp_path: Path) -> None:
    shutil.copytree(tiny.folder / "domain", tmp_path / "domain")
    tensors = load_file(tmp_path / "domain" / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, tmp_path / "domain" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"source 'domain' in .* holds something else") as refused:
        merge_recipe(merged / RECIPE_FILE, tmp_path / "again", sources={"domain": str(tmp_path / "domain")})
    assert "'retriever'" not in str(refused.value)
    assert not (tmp_path / "again").exists()


def test_weights_that_are_not_the_recorded_ones_are_refused(merged: Path, tmp_path: Path) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    found["weights"] = "0" * 64
    found["versions"]["export"]["torch"] = "1.0"
    (tmp_path / "other.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ExportError, match=r"but the weights are not: .*torch 1\.0 →"):
        merge_recipe(tmp_path / "other.json", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: found["recipe"]["groups"][1]["coefficients"]["weight"].update(domain=0.9), "recipe was changed"),
        (lambda found: found.update(format=7), "has format 7"),
        (lambda found: found["recipe"].pop("groups"), "nor a recipe"),
        (lambda found: found["recipe"].update(method="magic"), "magic"),
        (lambda found: found.clear(), "nor a recipe"),
    ],
)
def test_files_that_are_no_recipes(merged: Path, tmp_path: Path, spoil: object, said: str) -> None:
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    spoil(found)  # type: ignore[operator]
    (tmp_path / "wrong.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ExportError, match=said):
        merge_recipe(tmp_path / "wrong.json", tmp_path / "again")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    for name in ("broken.json", "missing.json"):
        assert mergesearch("merge", tmp_path / name, "--out", tmp_path / "again").code == 6


@pytest.mark.slow
def test_what_the_study_said_of_encoding_is_written_again(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=3)
    tiny.change("evaluation", "pooling", to="cls").change("evaluation", "dtype", to="bfloat16")
    tiny.change("merge", "method", to="ties").change("merge", "base", to="retriever")
    tiny.change("merge", "coefficients", to={"weight": {"low": 0.5, "high": 1.0}, "density": 0.4})
    merged = export(tiny, 2)
    made = merge_recipe(merged / RECIPE_FILE, tmp_path / "again", sources=dict_of_folders(tiny))
    assert made.warnings  # nothing says their licence
    assert_made_again(merged, made.folder)


@pytest.mark.slow
def test_shared_tokens_are_matched_again(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=3)
    own_words(tmp_path / "domain")
    tiny.change("merge", "other_vocabulary", to="shared_tokens").change("merge", "groups", "embeddings", to="own")
    merged = export(tiny, 2)
    assert_made_again(
        merged, merge_recipe(merged / RECIPE_FILE, tmp_path / "again", sources=dict_of_folders(tiny)).folder
    )


@pytest.mark.slow
@pytest.mark.parametrize("base_is_a_source", [True, False])
def test_adapters_are_merged_into_their_bases_again(tmp_path: Path, base_is_a_source: bool) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=3)
    base = make_variant(tmp_path / "retriever", tmp_path / "base", seed=4)
    make_adapter(base, tmp_path / "adapter", modules=("query", "value"), seed=1)
    tiny.change("sources", "domain", to=None)
    if base_is_a_source:
        make_adapter(base, tmp_path / "other", modules=("query",), base_model_name_or_path="nowhere/known", seed=2)
        tiny.change("sources", "base", to="base")
        tiny.change("sources", "tuned", to={"model": "other", "adapter_of": "base"})
        tiny.change("merge", "coefficients", to={"weight": {"low": 0.2, "high": 0.8}})
    else:
        tiny.change("sources", "tuned", to="adapter")
    merged = export(tiny, 2)
    found = json.loads((merged / RECIPE_FILE).read_text(encoding="utf-8"))
    assert "is an adapter" in found["mergekit"]["why_not"]
    assert found["sources"]["tuned"]["base"]["source"] == ("base" if base_is_a_source else None)
    folders = {ref["name"]: str(tmp_path / ref["location"]) for ref in found["recipe"]["sources"]}
    assert_made_again(merged, merge_recipe(merged / RECIPE_FILE, tmp_path / "again", sources=folders).folder)


def test_a_source_alone_keeps_its_places(finished: tuple[Study, StudyStore], tiny: TinyStudy, tmp_path: Path) -> None:
    """`evaluate` makes recipes of whole sources, which copy from others than the template."""
    recipe = finished[0].source_alone("domain")
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
    made = merge_recipe(tmp_path / "recipe.json", tmp_path / "again")
    tensors, domain = (load_file(f / "model.safetensors") for f in (made.folder, tiny.folder / "domain"))
    assert all((tensor == domain[name]).all() for name, tensor in tensors.items())


def dict_of_folders(tiny: TinyStudy) -> dict[str, str]:
    return {name: str(tiny.folder / name) for name in ("retriever", "domain")}
