"""Exports of whole tiny studies: what stands under the wanted name is the merge that was scored, or nothing."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch import export_merge, load_study, open_store, run_study
from mergesearch.errors import ExportError, ResumeError
from mergesearch.evaluation.encoder import open_encoder
from mergesearch.listener import Listener
from mergesearch.merging.resident import ResidentMerger
from mergesearch.recipe import MergeRecipe
from mergesearch.results import export, model_files
from mergesearch.results.export import EMBEDDING_TOLERANCE, RECIPE_FILE, Exported
from mergesearch.results.mergekit.writing import CONFIG_FILE
from mergesearch.workers.opening import open_merger
from tests.tiny_models import HIDDEN, make_tiny, make_variant
from tests.tiny_studies import TinyStudy, make_study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mergesearch.storage.store import StudyStore
    from mergesearch.study import Study

TEXTS = ["graph search", "the protein diet of a patient with cancer", "merge"]


class Silent(Listener):
    """A listener that nobody listens to."""


def run(tiny: TinyStudy) -> tuple[Study, StudyStore]:
    study = load_study(tiny.file)
    store = open_store(study, tiny.storage)
    run_study(study, store, Silent())
    return study, store


@contextmanager
def scored(tiny: TinyStudy) -> Iterator[tuple[Study, StudyStore]]:
    study, store = run(tiny)
    with store:
        yield study, store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    made = make_study(tmp_path_factory.mktemp("study"))
    (made.folder / "retriever" / "README.md").write_text("the template's own card\n", encoding="utf-8")
    (made.folder / "retriever" / "LICENSE").write_text("free\n", encoding="utf-8")
    (made.folder / "retriever" / "training_args.bin").write_bytes(b"not a weight")
    (made.folder / "retriever" / "onnx").mkdir()
    (made.folder / "retriever" / "onnx" / "config.json").write_text("{}", encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy) -> Iterator[tuple[Study, StudyStore]]:
    with scored(tiny) as found:
        yield found


@pytest.fixture(scope="module")
def exported(finished: tuple[Study, StudyStore], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    study, store = finished
    merge = next(t.number for t in store.trials() if t.user_attrs.get("anchor") == "uniform average")
    return export_merge(study, store, tmp_path_factory.mktemp("out") / "new" / "merged", trial=merge)


def resident(study: Study, recipe: MergeRecipe) -> dict[str, torch.Tensor]:
    """The weights that are scored, as `mergesearch run` makes them."""
    encoder, merger = open_merger(study.evaluator_spec())
    merger.apply(recipe)
    return {name: p.detach().clone() for name, p in encoder.parameters.items()}


def files_of(folder: Path) -> set[str]:
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def assert_scores_and_embeddings_are_those_of_other_tools(found: Exported, study: Study, store: StudyStore) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    recipe = store.recipe(found.trial)
    weights = resident(study, recipe)
    dtype = getattr(torch, recipe.dtype)
    stored: dict[str, torch.Tensor] = {}
    for file in found.folder.glob("model*.safetensors"):
        stored |= load_file(file)
    for name, tensor in weights.items():
        assert tensor.dtype == dtype
        assert name in stored or name.endswith("embed_tokens.weight"), name  # T5 stores tied tensors once
        if name in stored:
            assert torch.equal(stored[name], tensor), name
    model = SentenceTransformer(str(found.folder), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})
    theirs = model.encode_document(TEXTS, convert_to_tensor=True, show_progress_bar=False).float()
    encoder = open_encoder(study.folders[recipe.template], dtype=recipe.dtype, **overrides(study))
    for name, parameter in encoder.parameters.items():
        parameter.data.copy_(weights[name])
    ours = encoder.encode(encoder.plan(TEXTS, "document"))
    assert ((theirs - ours).norm(dim=1) / ours.norm(dim=1)).max() <= EMBEDDING_TOLERANCE[recipe.dtype]
    auto = dict(AutoModel.from_pretrained(found.folder, dtype=dtype, local_files_only=True).named_parameters())
    assert all(torch.equal(auto[name], tensor) for name, tensor in weights.items() if name in auto)
    assert abs(found.rescored - found.recorded) <= export.SCORE_TOLERANCE
    assert found.recorded == store.trials()[found.trial].value


def overrides(study: Study) -> dict[str, Any]:
    settings = study.evaluator_spec().evaluation
    return {"pooling": settings.pooling, "normalize": settings.normalize}


def test_an_export_is_the_merge_that_was_scored(exported: Exported, finished: tuple[Study, StudyStore]) -> None:
    assert_scores_and_embeddings_are_those_of_other_tools(exported, *finished)


def test_all_but_weights_config_and_card_is_the_template_byte_for_byte(exported: Exported, tiny: TinyStudy) -> None:
    template = tiny.folder / "retriever"
    own = {"config.json", "model.safetensors", "README.md", RECIPE_FILE, CONFIG_FILE}
    assert files_of(exported.folder) - own == files_of(template) - own - {"training_args.bin", "onnx/config.json"}
    for name in files_of(exported.folder) - own:
        assert (exported.folder / name).read_bytes() == (template / name).read_bytes(), name
    assert {"modules.json", "1_Pooling/config.json", "tokenizer.json", "LICENSE"} < files_of(exported.folder)


def test_provenance_gives_the_recipe_back(exported: Exported, finished: tuple[Study, StudyStore]) -> None:
    study, store = finished
    found = json.loads((exported.folder / RECIPE_FILE).read_text(encoding="utf-8"))
    recipe = MergeRecipe.from_dict(found["recipe"])
    assert recipe == store.recipe(exported.trial)
    assert recipe.fingerprint == found["fingerprint"]
    assert [s.content_hash for s in recipe.sources] == [c.content_hash for c in study.checkpoints.values()]
    assert found["dev"]["value"] == exported.recorded
    assert found["dev"]["collections"]["made"] == {
        "metric": "ndcg@10", "score": exported.recorded, "rescored": exported.rescored, "queries": 8, "weight": 1.0,
        "pool": False, "pseudo_queries": False,
    }  # fmt: skip
    assert found["test"] == []
    assert found["encoding"]["pooling"] == ["mean"]
    assert found["encoding"]["differs_from_template"] is False
    assert found["versions"]["export"]["torch"] == torch.__version__
    assert found["study_file"] == study.parsed.text


def test_an_export_has_usual_permissions_and_leaves_nothing_beside_it(exported: Exported) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    assert exported.folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert {(exported.folder / f).stat().st_mode & 0o777 for f in files_of(exported.folder)} == {0o666 & ~mask}
    assert [p.name for p in exported.folder.parent.iterdir()] == ["merged"]


def test_an_export_is_a_source_of_the_next_study(exported: Exported, tmp_path: Path) -> None:
    study = make_study(tmp_path).change("sources", "retriever", to=str(exported.folder))
    with scored(study.change("search", "trials", to=2)) as (loaded, store):
        again = export_merge(loaded, store, tmp_path / "merged", trial=0)
    assert (again.folder / "LICENSE").is_file()
    assert json.loads((again.folder / RECIPE_FILE).read_text())["study"] == "tiny"


@pytest.mark.parametrize(
    ("kind", "dtype", "stored", "shards"),
    [
        ("bert", "bfloat16", torch.float32, "5GB"),
        ("xlm-roberta", "float32", torch.bfloat16, "20KB"),
        ("t5", "float32", torch.float32, "20KB"),
        ("mistral", "bfloat16", torch.bfloat16, "5GB"),
        ("distilbert", "float16", torch.float32, "5GB"),
    ],
)
def test_layouts_dtypes_and_shards(kind: str, dtype: str, stored: torch.dtype, shards: str, tmp_path: Path) -> None:
    tiny = make_study(tmp_path, kind=kind)
    for seed, name in enumerate(("retriever", "domain")):
        source = make_tiny(kind, tmp_path / "made", seed=7, n_layers=2, dtype=stored)
        made = make_variant(source, tmp_path / f"made{seed}", seed=seed)
        reshard(made, tmp_path / name, shards)
    tiny.change("evaluation", "dtype", to=dtype).change("search", "trials", to=3)
    with scored(tiny) as (study, store):
        found = export_merge(study, store, tmp_path / "merged", trial=2)
        assert_scores_and_embeddings_are_those_of_other_tools(found, study, store)
    assert "model.safetensors" in files_of(found.folder)
    assert not [f for f in files_of(found.folder) if "index" in f or "-of-" in f]


def reshard(origin: Path, folder: Path, size: str) -> None:
    """The same tensors in `folder`, in place of what is there, in shards of `size`."""
    from transformers import AutoModel, T5EncoderModel

    for file in folder.glob("model*.safetensors"):
        file.unlink()
    tensors = load_file(origin / "model.safetensors")
    loader = T5EncoderModel if json.loads((origin / "config.json").read_text())["model_type"] == "t5" else AutoModel
    model = loader.from_pretrained(origin, dtype=next(iter(tensors.values())).dtype)
    model.save_pretrained(folder, max_shard_size=size)


def test_weights_of_modules_after_pooling_are_kept(tmp_path: Path) -> None:
    tiny = make_study(tmp_path)
    for name in ("retriever", "domain"):
        add_dense(tmp_path / name)
    with scored(tiny.change("search", "trials", to=3)) as (study, store):
        found = export_merge(study, store, tmp_path / "merged", trial=2)
        assert_scores_and_embeddings_are_those_of_other_tools(found, study, store)
    kept, template = (f / "2_Dense" / "model.safetensors" for f in (found.folder, tmp_path / "retriever"))
    assert kept.read_bytes() == template.read_bytes()


def add_dense(folder: Path) -> None:
    """Put a Dense layer between pooling and normalisation."""
    listing = json.loads((folder / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    listing = [*listing[:2], dense, {**listing[2], "idx": 3, "name": "3"}]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "2_Dense").mkdir()
    config = {"in_features": HIDDEN, "out_features": 8, "bias": False,
              "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    weight = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(5))
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")


def test_where_the_study_pools_otherwise_the_export_says_what_was_scored(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("evaluation", "pooling", to="cls").change("search", "trials", to=3)
    tiny.change("evaluation", "normalize", to=False)
    with scored(tiny) as (study, store):
        found = export_merge(study, store, tmp_path / "merged", trial=2)
        assert_scores_and_embeddings_are_those_of_other_tools(found, study, store)
    encoder = open_encoder(found.folder)
    assert (encoder.settings.pooling, encoder.settings.normalize) == (("cls",), False)
    assert "module files say what was scored" in (found.folder / "README.md").read_text()


def test_a_template_without_sentence_transformers_files_gets_them(tmp_path: Path) -> None:
    tiny = make_study(tmp_path)
    (tmp_path / "retriever" / "modules.json").unlink()
    (tmp_path / "retriever" / "config_sentence_transformers.json").unlink()
    tiny.change("evaluation", "pooling", to="mean").change("evaluation", "normalize", to=True)
    with scored(tiny.change("search", "trials", to=3)) as (study, store):
        found = export_merge(study, store, tmp_path / "merged", trial=2)
        assert_scores_and_embeddings_are_those_of_other_tools(found, study, store)


def test_the_chosen_merge_is_exported_by_default_and_a_repeated_recipe_by_its_number(
    finished: tuple[Study, StudyStore], tmp_path: Path
) -> None:
    from mergesearch import choose

    study, store = finished
    choice = choose(study, store)
    found = export_merge(study, store, tmp_path / "a")
    assert found.trial == choice.number
    dev = json.loads((found.folder / RECIPE_FILE).read_text(encoding="utf-8"))["dev"]
    assert (dev["optimism"], dev["expected"], dev["verdict"]) == (choice.optimism, choice.expected, choice.reason())
    assert choice.reason() in (found.folder / "README.md").read_text(encoding="utf-8")
    repeated = [t.number for t in store.trials() if "duplicate_of" in t.user_attrs]
    for number in repeated[:1]:
        assert export_merge(study, store, tmp_path / "b", trial=number).trial == number


def test_no_bars_are_drawn(
    finished: tuple[Study, StudyStore], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_merge(*finished, tmp_path / "merged", trial=0)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")


# What is refused


def test_a_folder_in_the_way_is_replaced_only_by_force_and_only_an_export(
    finished: tuple[Study, StudyStore], exported: Exported, tmp_path: Path
) -> None:
    study, store = finished
    before = {f: (exported.folder / f).read_bytes() for f in files_of(exported.folder)}
    with pytest.raises(ExportError, match="exists; choose another folder or replace it with --force"):
        export_merge(study, store, exported.folder, trial=0)
    assert {f: (exported.folder / f).read_bytes() for f in files_of(exported.folder)} == before

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"no mergesearch\.json: it is not an export"):
        export_merge(study, store, foreign, trial=0, force=True)
    assert (foreign / "chapter1.tex").read_text() == "years of work"

    file = tmp_path / "file"
    file.write_text("mine")
    for force in (False, True):
        with pytest.raises(ExportError, match="is not a folder"):
            export_merge(study, store, file, trial=0, force=force)
    assert file.read_text() == "mine"

    empty = tmp_path / "empty"
    empty.mkdir()
    assert export_merge(study, store, empty, trial=0, force=True).folder == empty
    (empty / "scribble").write_text("in an export")
    replaced = export_merge(study, store, empty, trial=1, force=True)
    assert json.loads((empty / RECIPE_FILE).read_text())["trial"] == replaced.trial == 1
    assert not (empty / "scribble").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "thesis"]


def test_a_link_stays_a_link(finished: tuple[Study, StudyStore], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "merged").symlink_to(tmp_path / "disk" / "merged")
    export_merge(*finished, tmp_path / "merged", trial=0)
    export_merge(*finished, tmp_path / "merged", trial=1, force=True)
    assert (tmp_path / "merged").is_symlink()
    assert json.loads((tmp_path / "disk" / "merged" / RECIPE_FILE).read_text())["trial"] == 1


def test_a_source_of_the_study_is_never_replaced(tmp_path: Path) -> None:
    tiny = make_study(tmp_path / "study")
    (tiny.folder / "domain" / RECIPE_FILE).write_text("{}")
    with (
        scored(tiny.change("search", "trials", to=1)) as (study, store),
        pytest.raises(ExportError, match="is or holds a source"),
    ):
        export_merge(study, store, tiny.folder / "domain", force=True)


def test_a_trial_without_a_score_and_one_that_never_was(finished: tuple[Study, StudyStore], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"trial 77 has no score; trials with scores .*: 0, 1"):
        export_merge(*finished, tmp_path / "merged", trial=77)


def test_a_source_that_changed_since_is_named(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=2)
    with scored(tiny) as (_, store):
        tensors = load_file(tmp_path / "domain" / "model.safetensors")
        tensors["encoder.layer.0.output.dense.bias"] += 1
        save_file(tensors, tmp_path / "domain" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ResumeError, match=r"sources\.domain: "):
            export_merge(load_study(tiny.file), store, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_files_that_score_otherwise_are_no_export(
    finished: tuple[Study, StudyStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = finished

    def spoil(encoder: Any, template: Path, folder: Path, prompts: dict[str, str]) -> None:
        model_files.save_model(encoder, template, folder, prompts)
        tensors = load_file(folder / "model.safetensors")
        tensors["encoder.layer.0.output.dense.bias"][0] += 1e-7
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_model", spoil)
        with pytest.raises(ExportError, match="not those of the merge"):
            export_merge(study, store, tmp_path / "merged", trial=0)
        # Even where the comparison of weights is blind, the score is not.
        patch.setattr(ResidentMerger, "fingerprint", lambda self: "same")
        patch.setattr(export, "SCORE_TOLERANCE", -1.0)
        with pytest.raises(ExportError, match="on the dev split, recorded is"):
            export_merge(study, store, tmp_path / "merged", trial=0)
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_the_study_file_is_not_exported(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=1)
    url = tiny.storage
    tiny.change("storage", to="postgresql://me:s3cr3t@db.example.org/studies")
    study = load_study(tiny.file)
    with open_store(study, url) as store:
        run_study(study, store, Silent())
        found = export_merge(study, store, tmp_path / "merged")
    for name in files_of(found.folder):
        assert b"s3cr3t" not in (found.folder / name).read_bytes(), name
