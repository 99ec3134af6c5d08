"""A resolved study: recipes, anchors, what a resumed study must agree with, and problems found on the way."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mergesearch.errors import StudyFileError
from mergesearch.merging import METHODS
from mergesearch.resolving import load_study
from mergesearch.sources.encoding_files import encoding_files
from mergesearch.study import Study
from mergesearch.workers.opening import open_merger
from tests.tiny_models import make_tiny
from tests.tiny_studies import TinyStudy, copy_study, make_study

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def study(whole: TinyStudy) -> Study:
    return load_study(whole.file)


@pytest.fixture
def tiny(whole: TinyStudy, tmp_path: Path) -> TinyStudy:
    """A study to spoil."""
    return copy_study(whole, tmp_path)


def problems(tiny: TinyStudy) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        load_study(tiny.file)
    return [str(p) for p in caught.value.problems]


def test_a_recipe_covers_every_place_once_and_copies_what_is_not_merged(study: Study) -> None:
    recipe = study.recipe({"alpha.segment_1": 0.5, "alpha.segment_2": 1})
    places = [p for g in recipe.groups for p in g.places]
    assert sorted(places) == sorted(study.layout.places)
    by_name = {g.name: g for g in recipe.groups}
    assert by_name["embeddings"].copy_from == "retriever"
    assert by_name["segment_1"].coefficients == {"weight": {"retriever": 0.5, "domain": 0.5}}
    assert by_name["segment_2"].coefficients == {"weight": {"retriever": 1.0, "domain": 0.0}}
    assert recipe.seed == 3


def test_sources_alone_and_their_average_are_points_of_the_space(study: Study) -> None:
    points = {a.name: a.params for a in study.anchors()}
    assert points == {
        "retriever alone": {"alpha.segment_1": 1, "alpha.segment_2": 1},
        "domain's layers": {"alpha.segment_1": 0, "alpha.segment_2": 0},
        "uniform average": {"alpha.segment_1": 0.5, "alpha.segment_2": 0.5},
    }


def test_an_enqueued_point_that_repeats_another_is_evaluated_once(tiny: TinyStudy) -> None:
    point = {"alpha.segment_1": 1, "alpha.segment_2": 1}
    tiny.change("search", "enqueue", to=["sources", point, {**point, "alpha.segment_2": 0}])
    names = [a.name for a in load_study(tiny.file).anchors()]
    assert names == ["retriever alone", "domain's layers", "alpha.segment_1=1, alpha.segment_2=0"]


def test_a_source_alone_is_called_so_where_nothing_is_the_templates(tiny: TinyStudy) -> None:
    own = dict.fromkeys(("embeddings", "final_norm", "pooler"), "own")
    tiny.change("merge", "groups", to={"segments": 1, **own})
    tiny.change("search", "enqueue", to=["sources"])
    assert [a.name for a in load_study(tiny.file).anchors()] == ["retriever alone", "domain alone"]
    tiny.change("merge", "groups", "embeddings", to="template")
    assert [a.name for a in load_study(tiny.file).anchors()] == ["retriever alone", "domain's layers"]


@pytest.mark.parametrize(
    ("alpha", "options", "n_points", "n_outside"),
    [
        ({"values": [0, 0.5, 1]}, {}, 9, 0),
        ({"values": [0, 1]}, {}, 4, 1),
        ({"values": [0.2, 0.4]}, {}, 4, 3),
        ({"low": 0, "high": 1, "step": 0.25}, {}, 25, 0),
        ({"low": 0, "high": 1}, {"points": 2}, 4, 1),
        ({"low": 0, "high": 1}, {"points": 3}, 9, 0),
        ({"low": 0.1, "high": 0.9}, {"points": 2}, 4, 3),
    ],
)
def test_the_trials_of_a_grid_are_its_points_and_what_is_enqueued_beside_them(
    tiny: TinyStudy, alpha: dict[str, object], options: dict[str, int], n_points: int, n_outside: int
) -> None:
    tiny.change("merge", "coefficients", "alpha", to=alpha)
    tiny.change("search", to={"strategy": {"name": "grid", **options}, "enqueue": ["sources", "uniform"]})
    assert load_study(tiny.file).planned_trials == n_points + n_outside
    tiny.change("search", "trials", to=n_points)
    assert load_study(tiny.file).planned_trials == n_points
    tiny.change("search", "enqueue", to=[]).change("search", "trials", to=100)
    assert load_study(tiny.file).planned_trials == n_points


def test_an_enqueued_point_outside_the_space_is_refused(tiny: TinyStudy) -> None:
    tiny.change("search", "enqueue", to=[{"alpha.segment_1": 0.3, "alpha.segment_3": 1}])
    found = "\n".join(problems(tiny))
    assert tiny.line_of("alpha.segment_1").split(":")[0] in found
    assert "segment_3" in found


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("seed",), 4),
        (("merge", "coefficients", "alpha", "values"), [0, 1]),
        (("merge", "groups", "segments"), 1),
        (("evaluation", "metric"), "mrr@10"),
        (("evaluation", "max_length"), 16),
        (("evaluation", "prompts"), {"query": "find: "}),
        (("evaluation", "collections", 0, "queries"), 4),
        (("evaluation", "collections", 0, "pool"), {"negatives": 1}),
    ],
)
def test_what_changes_a_score_is_score_relevant(
    tiny: TinyStudy, study: Study, path: tuple[str | int, ...], to: object
) -> None:
    assert load_study(tiny.file).score_relevant() == study.score_relevant()
    assert load_study(tiny.change(*path, to=to).file).score_relevant() != study.score_relevant()


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("search", "trials"), 50),
        (("search", "strategy"), "tpe"),
        (("workers",), {"kind": "ray", "count": 2}),
        (("evaluation", "search"), "faiss"),
        (("evaluation", "collections", 0, "test_split"), "dev"),
    ],
)
def test_budget_strategy_and_workers_are_not(
    tiny: TinyStudy, study: Study, path: tuple[str | int, ...], to: object
) -> None:
    assert load_study(tiny.change(*path, to=to).file).score_relevant() == study.score_relevant()


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "config_sentence_transformers.json", "tokenizer.json"])
def test_the_templates_encoding_files_are_score_relevant(tiny: TinyStudy, study: Study, name: str) -> None:
    file = tiny.folder / "retriever" / name
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "extra": 1}), encoding="utf-8")
    assert load_study(tiny.file).score_relevant() != study.score_relevant()


def test_whole_modules_and_trusted_code_are_encoding_files(tmp_path: Path) -> None:
    """A template's projection and its own code change scores; other weights and stray scripts are not its files."""

    def write(name: str, content: Any = "") -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    kinds = {"": "models.Transformer", "1_Pooling": "models.Pooling", "2_Dense": "models.Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in kinds.items()]
    write("modules.json", modules)
    for name in ("config.json", "1_Pooling/config.json", "2_Dense/config.json"):
        write(name, {})
    for name in ("model.safetensors", "2_Dense/model.safetensors", "onnx/model.onnx", "train.py", ".cache/x.json"):
        write(name, "1")
    before = encoding_files(tmp_path)
    dense = {"2_Dense/config.json", "2_Dense/model.safetensors"}
    assert set(before) == {"modules.json", "1_Pooling/config.json"} | dense
    write("2_Dense/model.safetensors", "2")
    after = encoding_files(tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"2_Dense/model.safetensors"}

    write("config.json", {"auto_map": {"AutoModel": "modeling_own.OwnModel"}})
    write("modeling_own.py", "a = 1")
    assert set(encoding_files(tmp_path)) - set(after) == {"modeling_own.py", "train.py"}
    write("config.json", {})
    write("modules.json", [*modules, {"path": "", "type": "modeling_own.Last"}])
    assert "modeling_own.py" in encoding_files(tmp_path)

    for name in ("config.json", "model.safetensors"):  # as early sentence-transformers models have it
        (tmp_path / "0_Transformer").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "0_Transformer" / name)
    write("modules.json", [{**modules[0], "path": "0_Transformer"}, *modules[1:]])
    assert set(encoding_files(tmp_path)) == {*after, "0_Transformer/config.json"}


def test_score_relevant_is_plain_json(study: Study) -> None:
    relevant = study.score_relevant()
    assert json.loads(json.dumps(relevant)) == relevant


def test_file_sources_and_collections_are_checked_together(tiny: TinyStudy) -> None:
    tiny.change("sources", "domain", to="domian").change("evaluation", "collections", 0, "split", to="def")
    tiny.change("merge", "coefficients", "alpha", "values", to=[0, 2]).change("merge", "method", to="linear")
    found = problems(tiny)
    assert [f.partition(": ")[0] for f in found] == [
        tiny.line_of("domain: domian"),
        tiny.line_of("values:"),
        tiny.line_of("name: made"),
    ]
    assert "Did you mean 'domain'?" in found[0]
    assert "merge.coefficients.alpha.values: 2 is outside" in found[1]
    assert "dev" in found[2]


def test_a_template_that_does_not_say_how_it_pools_is_refused_before_anything_runs(tiny: TinyStudy) -> None:
    (tiny.folder / "retriever" / "modules.json").unlink()
    found = "\n".join(problems(tiny))
    assert "no file says how tokens are pooled: give `pooling`" in found
    tiny.change("evaluation", "pooling", to="mean").change("evaluation", "normalize", to=True)
    load_study(tiny.file)


def test_prompts_that_are_for_nobody_in_particular_are_asked_for(tiny: TinyStudy) -> None:
    file = tiny.folder / "retriever" / "config_sentence_transformers.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "prompts": {"sts": "Compare: "}}), encoding="utf-8")
    (found,) = problems(tiny)
    assert "prompts named 'sts'" in found
    tiny.change("evaluation", "prompts", to={"query": ""})
    load_study(tiny.file)


def test_groups_of_their_own_need_coefficients_only_where_the_model_has_them(tiny: TinyStudy) -> None:
    """BERT has no norm after its layers, but a pooler."""
    tiny.change("merge", "groups", to={"segments": 2, "final_norm": "own", "pooler": "own"})
    values = {"values": [0, 1]}
    tiny.change("merge", "coefficients", "alpha", to={"segment_1": values, "segment_2": values, "pooler": values})
    assert [d.name for d in load_study(tiny.file).space.dimensions] == [
        "alpha.segment_1",
        "alpha.segment_2",
        "alpha.pooler",
    ]


def test_a_missing_folder_that_the_file_says_how_to_make(tiny: TinyStudy) -> None:
    tiny.change("sources", "domain", to="../runs/words")
    (found,) = problems(tiny)
    assert "no folder" in found
    tiny.file.write_text("# Make it first:\n#   python make.py runs/words\n" + tiny.file.read_text())
    (found,) = problems(tiny)
    assert found.endswith("The file says: python make.py runs/words")


def test_an_option_spelled_out_as_its_default_is_the_same_study(tiny: TinyStudy) -> None:
    def found() -> tuple[object, str]:
        study = load_study(tiny.file)
        return study.score_relevant(), study.recipe(next(study.space.grid())).fingerprint

    unsaid = found()
    arithmetic = METHODS[load_study(tiny.file).method.name].options["arithmetic"]
    tiny.change("merge", "options", to={"arithmetic": arithmetic.default})
    assert found() == unsaid
    tiny.change("merge", "options", to={"arithmetic": "mergekit"})
    assert found()[0] != unsaid[0]
    assert found()[1] != unsaid[1]


def test_a_source_without_the_templates_pooler_is_still_scored_alone(tiny: TinyStudy) -> None:
    make_tiny("bert", tiny.folder / "mlm", n_layers=2, head="mlm", seed=5)
    resolved = load_study(tiny.change("sources", "domain", to="mlm").file)
    assert "pooler" not in resolved.own_places("domain")
    alone = {p: g.copy_from for g in resolved.source_alone("domain").groups for p in g.places}
    assert alone == {p: "retriever" if p == "pooler" else "domain" for p in resolved.layout.places}


CODE = """from transformers import BertConfig

with open({marker!r}, "a") as mark:
    mark.write("run")


class OwnConfig(BertConfig):
    model_type = "own"
"""


def own_code(tiny: TinyStudy, name: str) -> Path:
    """Make a source's config come with Python code that leaves a mark when it is run."""
    marker = tiny.folder / f"{name}-ran"
    file = tiny.folder / name / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    file.write_text(json.dumps(config), encoding="utf-8")
    (file.parent / "configuration_own.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
    return marker


def test_code_in_a_model_folder_is_run_only_for_sources_that_are_trusted(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tiny.folder / "modules"))
    marker = own_code(tiny, "domain")
    assert "trust_remote_code" in "\n".join(problems(tiny))
    tiny.change("sources", "retriever", to={"model": "retriever", "trust_remote_code": True})
    assert "trust_remote_code" in "\n".join(problems(tiny))
    assert not marker.exists()
    tiny.change("sources", "domain", to={"model": "domain", "trust_remote_code": True})
    found = "\n".join(problems(tiny))  # its type still differs from the template's
    assert "config 'model_type' is 'own'" in found
    assert marker.exists()


def test_similarity_reaches_the_evaluator(tiny: TinyStudy) -> None:
    resolved = load_study(tiny.change("evaluation", "similarity", to="dot").file)
    assert resolved.evaluator_spec().evaluation.similarity == "dot"
    encoder, _ = open_merger(resolved.evaluator_spec())
    assert encoder.settings.similarity == "dot"


def test_lengths_in_the_study_file_stand_in_for_a_template_that_states_none(tiny: TinyStudy) -> None:
    folder = tiny.folder / "retriever"
    (folder / "sentence_bert_config.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": int(1e30)}))
    assert "give `max_length`" in "\n".join(problems(tiny))
    resolved = load_study(tiny.change("evaluation", "max_length", to={"query": 16, "document": 32}).file)
    open_merger(resolved.evaluator_spec())
