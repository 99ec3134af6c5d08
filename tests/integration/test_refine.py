"""`mergesearch refine`, and the finer study that it makes: what came over is what an evaluation gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.errors import StudyFileError
from mergesearch.evaluation.result import IMPORTED_ATTR
from mergesearch.refining import _divided, narrow, refine
from mergesearch.resolving import load_study
from mergesearch.results.watch import Watch
from mergesearch.session import open_store, run_study
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from tests.controller_toys import Bench, ScriptedPool
from tests.starting_toys import finer, make_layers, start
from tests.tiny_models import make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch

TEXT = """\
# mergesearch run study.yaml
#
# Two halves.
study: halves
seed: 3

sources: {{retriever: retriever, domain: domain}}     # "package:NAME" works as well
storage: {storage}

merge:
  method: linear
  template: retriever
  groups:
    segments: 2
    embeddings: template          # the retriever's
  coefficients:
    alpha: {{low: 0, high: 1, step: 0.25}}     # share of the retriever

search:
  strategy: {{name: cmaes, x0: {{alpha.segment_1: 0.5}}}}
  trials: 6                       # with those enqueued
  enqueue: [sources, uniform, {{alpha.segment_1: 0.5, alpha.segment_2: 0.25}}]

# what is scored
evaluation:
  collections:
    - name: made
      folder: "collection"
workers: {{device: cpu, threads: 1}}
"""


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """A study of two halves of six layers that was run."""
    made = make_study(tmp_path_factory.mktemp("study"), n_layers=6)
    made.file.write_text(TEXT.format(storage=made.storage), encoding="utf-8")
    answer = mergesearch("run", made.file, "--quiet")
    assert answer.code == 0, answer.err
    return made


@pytest.fixture
def own(halves: TinyStudy, tmp_path: Path) -> TinyStudy:
    copied = copy_study(halves, tmp_path / "study")
    copied.file.write_text(TEXT.format(storage=copied.storage), encoding="utf-8")
    return copied


def test_from_halves_to_quarters(own: TinyStudy) -> None:
    out = own.folder / "quarters.yaml"
    made = mergesearch("refine", own.file, "--segments", 4, "--trials", 3, "--strategy", "tpe", "--out", out)
    assert made.code == 0, made.err
    assert "study halves-4-segments, 4 groups, 4 coefficients, 625 points\n" in made.out
    assert "start from halves: all 6 merges, with their scores\n" in made.out
    before, after = TEXT.format(storage=own.storage).splitlines(), out.read_text(encoding="utf-8").splitlines()
    assert [line for line in after if line not in before] == [
        "# mergesearch run quarters.yaml",
        "study: halves-4-segments",
        "    boundaries: [2, 3, 5]",
        "  start_from: halves",
        "  strategy: tpe",
        "  trials: 3                       # with those enqueued",
        "  enqueue: [sources, uniform]",
    ]
    assert [line for line in after if line in before] == [line for line in before if line in after]

    run = mergesearch("run", out)
    assert run.code == 0, run.err
    assert "\nstart from halves: all 6 merges, with their scores\n" in run.out
    assert "all 3 trials are done: 3 evaluated" in run.out
    again = mergesearch("run", out)
    assert "going on: 3 trials evaluated before, 6 that came over from another study\n" in again.out
    assert "start from" not in again.out
    status = mergesearch("status", out)
    assert "(imported: trial 3 of halves)" in status.out
    assert "9 complete (6 imported); " in status.out
    lines = json.loads(mergesearch("status", out, "-f", "json").out)["trials"]
    assert [t["imported"] for t in lines] == [f"trial {n} of halves" for n in range(6)] + [None] * 3
    assert [t["tokens"] for t in lines[:6]] == [0] * 6
    page = own.folder / "report.html"
    assert mergesearch("report", out, "--out", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert "(imported: trial 3 of halves)" in text
    assert "6 came over from another study" in text
    assert "start from halves: all 6 merges, with their scores" in text  # the history
    study = load_study(out)
    with StudyStore.open(own.storage, study.name, None, exclusive=False) as store:
        moment = Watch(store).read()
        assert (moment.done, moment.planned) == (3, 3)
        assert store.last_run().other["search"]["trials"] == 3


def test_imported_scores_are_those_of_an_evaluation_and_a_choice_may_fall_on_one(own: TinyStudy) -> None:
    start_from = {"study": "halves", "scores": "again", "best": 9}
    quarters = refine(load_study(own.file), own.folder / "quarters.yaml", segments=4, trials=1)
    again = refine(load_study(own.file), own.folder / "again.yaml", segments=4, name="again", trials=6)
    found = []
    for fine, chosen in ((quarters, None), (again, start_from)):
        text = fine.parsed.text
        text = text.replace("start_from: halves", f"start_from: {json.dumps(chosen)}") if chosen else text
        fine.parsed.path.write_text(text, encoding="utf-8")
        study = load_study(fine.parsed.path)
        with open_store(study) as store:
            run_study(study, store)
            imported = {t.number for t in store.trials() if IMPORTED_ATTR in t.user_attrs}
            scored = store.scored()
        found.append({r.fingerprint: t for n, (r, t) in scored.items() if chosen or n in imported})
        assert len(imported) == (0 if chosen else 6)
    known, evaluated = found
    assert known.keys() == evaluated.keys()
    for fingerprint, result in known.items():
        mine, theirs = result.collections[0], evaluated[fingerprint].collections[0]
        assert mine.query_ids == theirs.query_ids
        assert mine.scores.tolist() == theirs.scores.tolist()
    file = quarters.parsed.path
    best = json.loads(mergesearch("best", file, "-f", "json").out)
    assert best["best_value"] >= max(result.value for result in known.values())
    exported = mergesearch("export", file, "--trial", 3, "--out", own.folder / "merged")
    assert exported.code == 0, exported.err


@pytest.mark.parametrize("coarse", ["random", "embedding_surrogate"])
def test_predictions_are_made_from_what_came_over(tmp_path: Path, coarse: str) -> None:
    made = make_layers(tmp_path / "study").change("artifacts", to="kept")
    made.change("search", to={"strategy": coarse, "trials": 6})
    assert mergesearch("run", made.file, "--quiet").code == 0
    study = finer(made, "finer", strategy="embedding_surrogate", trials=6)
    with open_store(study) as store:
        summary = run_study(study, store)
        assert all(store.result(n) is not None for n in range(6))
    # After the four one-hot points the first prediction is made, of all that the two studies know.
    assert summary.evaluated == 6
    assert (summary.extra_tokens > 0) == (coarse == "random")


@given(st.integers(2, 48), st.data())
def test_new_segments_lie_within_the_old_ones_and_are_as_even_as_can_be(n_layers: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, n_layers - 1), max_size=n_layers - 2)))
    coarse = {f"segment_{i}": part.tolist() for i, part in enumerate(np.split(np.arange(n_layers), cuts), 1)}
    wanted = data.draw(st.integers(len(coarse) + 1, n_layers))
    fine = _divided(coarse, wanted, n_layers)
    assert len(fine) == wanted
    assert [layer for part in fine.values() for layer in part] == list(range(n_layers))
    for part in fine.values():
        assert any(set(part) <= set(old) for old in coarse.values())
    for old in coarse.values():
        sizes = [len(part) for part in fine.values() if part[0] in old]
        assert max(sizes) - min(sizes) <= 1
    for other in coarse.values():  # no old segment could have given a piece to a longer one's
        pieces = [part for part in fine.values() if part[0] in other]
        longest = max(len(part) for part in fine.values())
        assert len(pieces) == 1 or longest <= -(-len(other) // (len(pieces) - 1))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Two task vectors and ranges of every kind."""
    made = make_study(tmp_path_factory.mktemp("vectors"), n_layers=4)
    make_variant(made.folder / "retriever", made.folder / "other", seed=2)
    content = made.content()
    content["sources"]["other"] = "other"
    content["merge"] |= {
        "method": "ties",
        "base": "retriever",
        "groups": {"segments": 2, "embeddings": "own"},
        "coefficients": {
            "weight": {
                "domain": {"low": 0, "high": 1, "step": 0.05},
                "other": {
                    "embeddings": 0,
                    "segment_1": {"values": [0, 0.1, 0.5, 1]},
                    "segment_2": {"low": 0, "high": 1},
                },
            },
            "density": {"low": 0.2, "high": 1},
            "lambda": {"low": 0.1, "high": 2, "log": True, "tie": "groups"},
        },
    }
    content["search"] = {"strategy": "random", "trials": 12}
    made.write(content)
    return made


def best_points(study: Study, url: str, name: str, most: int) -> list[dict[str, Any]]:
    """The highest merges of a study, as points of a finer one."""
    with open_store(study, url) as store:
        start(study, store)
        ranked = sorted((t for t in store.trials() if t.params), key=lambda t: (-(t.value or 0), t.number))
    return [dict(t.params) for t in ranked[:most]]


@pytest.mark.parametrize("best", [1, 3])
def test_ranges_are_narrowed_about_the_best_merges(vectors: TinyStudy, tmp_path: Path, best: int) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    coarse = load_study(vectors.file)
    Bench(coarse, url).drive(ScriptedPool())
    wide = refine(coarse, vectors.folder / "fine.yaml", segments=3, name="wide")
    points = best_points(wide, url, "wide", best)
    with StudyStore.open(url, "tiny", None, exclusive=False) as store:
        close = narrow(wide, store, 0.1, best)
    assert close.space.by_name.keys() == wide.space.by_name.keys()
    assert all(close.space.contains(point) for point in points)
    for d in close.space.dimensions:
        before = wide.space.by_name[d.name]
        assert (d.log, d.step) == (before.log, before.step)
        if (choices := before.choices()) is not None:
            assert set(d.choices() or ()) <= set(choices)
        reach = [before.to_unit(point[d.name]) for point in points]
        low, high = (before.to_unit(x) for x in (d.low, d.high))
        step = 0 if choices is None else 1 / (len(choices) - 1)
        assert max(0, min(reach) - 0.1 - step) - 1e-3 <= low <= max(0, min(reach) - 0.1) + 1e-3
        assert min(1, max(reach) + 0.1) - 1e-3 <= high <= min(1, max(reach) + 0.1 + step) + 1e-3
    assert "weight.other.embeddings" not in close.space.by_name  # a constant stays one


def test_components_and_layers(tmp_path: Path) -> None:
    made = make_layers(tmp_path / "study")
    made.change("merge", "groups", to={"segments": 2, "components": True})
    each = {"low": 0, "high": 1}
    made.change(
        "merge", "coefficients", to={"alpha": {"attention": each, "segment_1_mlp": each, "mlp": 0.5, "norms": 1}}
    )
    coarse = load_study(made.file)
    url = f"sqlite:///{tmp_path}/study.db"
    Bench(coarse, url).with_search(strategy="random", trials=6).drive(ScriptedPool())
    layers = refine(coarse, made.folder / "fine.yaml", segments=None)
    names = [f"alpha.layer_{i}_attention" for i in range(4)] + ["alpha.layer_0_mlp", "alpha.layer_1_mlp"]
    assert sorted(layers.space.by_name) == sorted(names)
    with open_store(layers, url) as store:
        brought = start(layers, store)
    assert brought is not None
    assert brought.taken == 6
    with pytest.raises(StudyFileError, match="a segment for each of its 4 layers already"):
        refine(layers, made.folder / "finest.yaml", segments=None)


def test_what_cannot_be_refined_is_refused(own: TinyStudy, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        answer = mergesearch("refine", own.file, *arguments)
        assert answer.code == 2
        return answer.err

    out = own.folder / "finer.yaml"
    assert "the study has 2 in 6 layers, so 3 to 6 are" in said("--segments", 2, "--out", out)
    assert "so 3 to 6 are" in said("--segments", 7, "--out", out)
    assert "--segments N or --per-layer" in said("--out", out)
    beside = re.escape(str(out))
    assert re.search(f"write beside it: --out {beside}", said("--segments", 3, "--out", tmp_path / "finer.yaml"))
    assert not out.exists()
    assert "exists" in said("--segments", 3, "--out", own.file)
    for n in (3, 4):  # a study that nobody ran yet
        own.change("study", to="never").change("storage", to=f"sqlite:///{tmp_path}/none-{n}.db")
        answer = mergesearch("refine", own.file, "--segments", n, "--out", out, "--force")
        assert answer.code == 0, answer.err
        assert "nothing to start from yet: there is no study database" in answer.out
    assert mergesearch("refine", own.file, "--segments", 4, "--around", 0.1, "--out", out, "--force").code == 4
