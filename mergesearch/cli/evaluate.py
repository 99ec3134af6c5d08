"""`mergesearch evaluate`: scores on a split that was not searched on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from mergesearch.cli.common import (
    announce_loading,
    examples,
    format_option,
    open_existing,
    print_result,
    quiet_libraries,
    storage_option,
)

if TYPE_CHECKING:
    from mergesearch.results.evaluate import Evaluation
    from mergesearch.results.mteb_tasks import MtebEvaluation
    from mergesearch.storage.store import StudyStore

_OF_A_STUDY = {"trials", "rivals", "correction", "level"}
_OF_BOTH = {"split", "metrics"}


@click.command(
    "evaluate",
    short_help="Score winner and sources on the test split.",
    epilog=examples(
        "mergesearch evaluate studies/segment-grid.yaml            # sources, uniform average, winner",
        "mergesearch evaluate studies/segment-grid.yaml --metrics precision@10,ndcg@3 --correction bonferroni "
        "--level 0.99",
        "mergesearch evaluate studies/segment-grid.yaml --rival all=runs/expert-all --trial 3",
        "mergesearch evaluate merged --on studies/segment-grid.yaml  # a folder, with the study's settings",
        "mergesearch evaluate merged --beir ../data/nfcorpus --split test",
        "mergesearch evaluate merged --mteb NFCorpus,SciFact --out mteb-results --card",
    ),
)
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--on", "study_file", type=click.Path(path_type=Path), help="Study file that names the collections.")
@click.option("--beir", type=click.Path(path_type=Path), help="A collection folder in BEIR layout.")
@click.option("--split", default="test", show_default=True, help="Which queries to read.")
@click.option("--trial", "trials", type=int, multiple=True, help="Of a study: score this trial, too.")
@click.option("--rival", "rivals", metavar="NAME=MODEL", multiple=True, help="Of a study: score this model, too.")
@click.option("--metrics", metavar="METRIC,…", help="Show and test these, such as precision@10,ndcg@3,ndcg@10,map@100.")
@click.option("--correction", type=click.Choice(["holm", "bonferroni"]), default="holm", show_default=True)
@click.option("--level", type=float, help="Of confidence, such as 0.99: of intervals, and for stars.  [0.95, no stars]")
@click.option("--mteb", metavar="TASK,…", help="Retrieval tasks of MTEB, on the splits that MTEB evaluates.")
@click.option("--out", type=click.Path(path_type=Path), help="With --mteb: the folder for MTEB's JSON files.")
@click.option(
    "--name", metavar="ORG/MODEL", help="With --mteb: the model's name in these files.  [default: local/FOLDER]"
)
@click.option("--card", is_flag=True, help="With --mteb: put the scores into the folder's model card, too.")
@storage_option
@format_option
@click.pass_context
def command(context: click.Context, /, target: Path, storage: str | None, output: str, **options: Any) -> None:
    """Score a study's winner and sources on the test split with paired tests, or score any model folder."""
    source = click.core.ParameterSource.COMMANDLINE
    given = {name for name in options if context.get_parameter_source(name) is source}
    if not target.is_dir() and given - _OF_A_STUDY - _OF_BOTH:
        raise click.UsageError(f"there is no model folder {target} (--on, --beir and --mteb score a model folder)")
    if target.is_dir() and len(given & {"study_file", "beir", "mteb"}) != 1:
        raise click.UsageError("say what to score the folder on: --on STUDY.yaml, --beir FOLDER or --mteb TASK")
    if target.is_dir() and given & _OF_A_STUDY:
        raise click.UsageError("--trial, --rival, --correction and --level belong to a study; a folder is scored alone")
    if ("mteb" in given) != ("out" in given) or (not options["mteb"] and given & {"name", "card"}):
        raise click.UsageError("--mteb and --out FOLDER belong together, and --name and --card to them")
    if "mteb" in given and ("split" in given or storage):
        raise click.UsageError("with --mteb the task says which split is read, and nothing is recorded with a study")
    if {"mteb", "metrics"} <= given:
        raise click.UsageError("with --mteb the metrics are mteb's own")
    announce_loading()
    with quiet_libraries():
        evaluation, notes = _evaluate(target, storage, **options)
    print_result(evaluation, output, notes)


def _evaluate(
    target: Path,
    storage: str | None,
    *,
    study_file: Path | None,
    beir: Path | None,
    split: str,
    trials: Sequence[int],
    rivals: Sequence[str],
    metrics: str | None,
    correction: Literal["holm", "bonferroni"],
    level: float | None,
    mteb: str | None,
    out: Path | None,
    name: str | None,
    card: bool,
) -> tuple[Evaluation | MtebEvaluation, Sequence[str]]:
    """What was asked for, and what there is to say about it."""
    from mergesearch.cli.progress import phase_bar
    from mergesearch.resolving import load_study
    from mergesearch.results.evaluate import evaluate_folder, evaluate_study
    from mergesearch.results.tested import Reported

    if mteb is not None and out is not None:
        return _by_mteb(target, mteb, out, name, card)
    if not target.exists():
        raise click.UsageError(f"there is neither a study file nor a model folder {target}")
    reported = Reported(tuple(_listed(metrics)), correction, level)
    if not target.is_dir():
        beside = dict(_named(rival) for rival in rivals)
        study = load_study(target)
        with open_existing(target, storage) as store, phase_bar("evaluating") as progress:
            evaluation = evaluate_study(
                study, store, split=split, trials=trials, rivals=beside, reported=reported, progress=progress
            )
        return evaluation, evaluation.notes
    named = load_study(study_file) if study_file else None
    with _recorded(study_file, storage) as recorded, phase_bar("evaluating") as progress:
        evaluation = evaluate_folder(
            target, study=named, store=recorded, beir=beir, split=split, reported=reported, progress=progress
        )
    return evaluation, evaluation.notes


def _listed(text: str | None) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _named(rival: str) -> tuple[str, str]:
    name, equals, model = rival.partition("=")
    if not (name and equals and model):
        raise click.UsageError(f"--rival is NAME=MODEL, such as all-data=runs/expert-all, not {rival!r}")
    return name, model


def _by_mteb(folder: Path, mteb: str, out: Path, name: str | None, card: bool) -> tuple[MtebEvaluation, Sequence[str]]:
    from mergesearch.results.mteb_tasks import add_to_card, evaluate_mteb

    evaluation = evaluate_mteb(folder, _listed(mteb), out, name=name, progress=sys.stderr.isatty())
    notes = [
        f"written in MTEB's layout: {sorted({s.file.parent for s in evaluation.scores})[0]}",
        "not recorded with any study: a choice made by these scores makes them selection scores",
    ]
    if card:
        notes.append(f"scores put into {add_to_card(folder, evaluation)}")
    return evaluation, notes


@contextmanager
def _recorded(study_file: Path | None, storage: str | None) -> Iterator[StudyStore | None]:
    """The study's records, in which a reading of its test split is noted; None while it has none."""
    from mergesearch.errors import StorageError

    store = None
    if study_file is not None:
        try:
            store = open_existing(study_file, storage)
        except StorageError as error:
            click.echo(f"note: the study is not recorded yet, so neither is this reading ({error})", err=True)
    try:
        yield store
    finally:
        if store is not None:
            store.close()
