"""`mergesearch protocol limited-data`: merging against LoRA with all dev queries and with few."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import (
    STUDY_FILE,
    announce_loading,
    examples,
    format_option,
    print_json,
    print_table,
    quiet_libraries,
    storage_option,
)


@click.command(
    "limited-data",
    short_help="Merging against LoRA fine-tuning, with all dev queries and with few.",
    epilog=examples(
        "mergesearch protocol limited-data studies/limited-data.yaml --work runs/limited-data --plan",
        "mergesearch protocol limited-data studies/limited-data.yaml --work runs/limited-data",
        "mergesearch protocol limited-data grid.yaml tpe.yaml --work runs/limited-data   # and a strategy that learns",
    ),
)
@click.argument("study_files", metavar="STUDY.yaml...", type=STUDY_FILE, nargs=-1, required=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="FOLDER",
    help="For studies on samples, trainings and result.json; the same folder goes on.",
)
@storage_option
@click.option("--plan", "only_plan", is_flag=True, help="Show what it will do and cost, and end.")
@click.option("--sample", "queries", type=click.IntRange(5), default=50, show_default=True, help="Dev queries of one.")
@click.option("--repeats", type=click.IntRange(2), default=10, show_default=True, help="How many samples.")
@click.option(
    "--rule",
    "rules",
    type=click.Choice(["highest", "advised"]),
    multiple=True,
    default=["highest"],
    show_default=True,
    help="How merges are chosen: the highest dev score of all merges, or as `best` does it; may be given twice.",
)
@click.option("--mined", type=click.IntRange(0), default=30, show_default=True, help="BM25 negatives of a query.")
@click.option("--negatives", type=click.IntRange(0), default=7, show_default=True, help="Of these, in an example.")
@click.option("--positives", type=click.IntRange(1), default=1, show_default=True, help="Examples of a query at most.")
@click.option("--passes", type=click.IntRange(1), default=5, show_default=True, help="Most epochs of LoRA.")
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of LoRA.")
@click.option("--alpha", type=float, default=32, show_default=True, help="Scale of LoRA, relative to the rank.")
@click.option("--learning-rate", type=float, default=1e-4, show_default=True)
@click.option("--temperature", type=float, default=0.05, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=16, show_default=True)
@click.option("--mini-batch", type=click.IntRange(1), help="Examples encoded at a time; the batch stays as large.")
@click.option("--max-length", type=click.IntRange(2), help="Tokens of a text in training  [the study's, or 512]")
@format_option
def command(
    study_files: tuple[Path, ...],
    work: Path,
    storage: str | None,
    only_plan: bool,
    queries: int,
    repeats: int,
    rules: tuple[str, ...],
    mined: int,
    passes: int,
    rank: int,
    alpha: float,
    output: str,
    **settings: Any,
) -> None:
    """Compare segment merging with LoRA fine-tuning, with all dev queries and with samples of few (CIKM'25).

    A grid is evaluated once, and what it would have chosen on each sample follows from recorded scores. Other
    strategies, and LoRA, are run for each sample. What was chosen is scored on the test split, each model once.
    Killed or interrupted, the same command goes on.
    """
    announce_loading()
    from mergesearch.protocols.limited_data import LimitedData, LimitedDataProtocol
    from mergesearch.protocols.limited_plan import plan_limited_data
    from mergesearch.protocols.limited_tables import differences, notes, tables
    from mergesearch.protocols.lora_rival import RivalSettings
    from mergesearch.study_file import parse_study
    from mergesearch.training.adapters import ALL, AdapterSettings
    from mergesearch.training.expert import NONE, ExpertSettings

    adapter = AdapterSettings("lora", rank=rank, alpha=alpha, dropout=0.0, targets=ALL)
    expert = ExpertSettings(adapter=adapter, mine=NONE, epochs=passes, **settings)
    asked = LimitedData(queries, repeats, tuple(dict.fromkeys(rules)), RivalSettings(expert, mined))
    with quiet_libraries():
        protocol = LimitedDataProtocol([parse_study(file) for file in study_files], work, asked, storage)
        plan = plan_limited_data(protocol)
        if output == "table":
            title, headers, rows = plan.table()
            print_table(headers, rows, title=title)
            click.echo()
        if only_plan:
            if output == "json":
                print_json(plan.to_dict())
            return
        try:
            outcome = protocol.run(_announcer(quiet=output == "json"))
        except KeyboardInterrupt:
            click.echo(f"interrupted. Go on with: {shlex.join(['mergesearch', *sys.argv[1:]])}", err=True)
            raise
    if output == "json":
        print_json({**outcome.to_dict(), "differences": [d.to_dict() for d in differences(outcome)]})
        return
    for title, headers, rows in tables(outcome):
        click.echo()
        print_table(headers, rows, title=title)
    for note in notes(outcome):
        click.echo(f"note: {note}")


def _announcer(*, quiet: bool) -> Callable[[str], Any]:
    """A line for every piece of work, and in a terminal a bar while it lasts."""
    from mergesearch.cli.progress import phase_bar

    @contextmanager
    def announce(what: str) -> Iterator[Callable[[int, int], None]]:
        if not quiet:
            click.echo(what)
        with phase_bar(what, quiet=quiet) as show:
            yield show

    return announce
