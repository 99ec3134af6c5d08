"""`mergesearch evaluate`: scores on a split that was not searched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergesearch.cli.common import (
    announce_loading,
    examples,
    format_option,
    open_existing,
    print_json,
    print_table,
    quiet_libraries,
    storage_option,
)

if TYPE_CHECKING:
    from mergesearch.storage.store import StudyStore


@click.command(
    "evaluate",
    short_help="Score winner and sources on the test split.",
    epilog=examples(
        "mergesearch evaluate studies/segment-grid.yaml            # sources, uniform average, winner",
        "mergesearch evaluate merged --on studies/segment-grid.yaml  # a folder, with the study's settings",
        "mergesearch evaluate merged --beir ../data/nfcorpus --split test",
    ),
)
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--on", "study_file", type=click.Path(path_type=Path), help="Study file that names the collections.")
@click.option("--beir", type=click.Path(path_type=Path), help="A collection folder in BEIR layout.")
@click.option("--split", default="test", show_default=True, help="Which queries to read.")
@storage_option
@format_option
def command(
    target: Path, study_file: Path | None, beir: Path | None, split: str, storage: str | None, output: str
) -> None:
    """Score a study's winner and sources on the test split with paired tests, or score any model folder."""
    announce_loading()
    from mergesearch.cli.progress import phase_bar
    from mergesearch.resolving import load_study
    from mergesearch.results.evaluate import evaluate_folder, evaluate_study

    if target.is_dir():
        if (study_file is None) == (beir is None):
            raise click.UsageError("say what to score the folder on: --on STUDY.yaml or --beir FOLDER")
        study = load_study(study_file) if study_file else None
        with quiet_libraries(), _recorded(study_file, storage) as store, phase_bar("evaluating") as progress:
            evaluation = evaluate_folder(target, study=study, store=store, beir=beir, split=split, progress=progress)
    else:
        if study_file is not None or beir is not None:
            raise click.UsageError(f"there is no model folder {target} (--on and --beir score a model folder)")
        study = load_study(target)
        with quiet_libraries(), open_existing(target, storage) as store, phase_bar("evaluating") as progress:
            evaluation = evaluate_study(study, store, split=split, progress=progress)
    if output == "json":
        print_json(evaluation.to_dict())
        return
    for title, headers, rows in evaluation.tables():
        print_table(headers, rows, title=title)
        click.echo()
    for note in evaluation.notes:
        click.echo(note)


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
