"""`mergesearch report`: one page that says what a study found."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import (
    announce_loading,
    examples,
    open_existing,
    quiet_libraries,
    storage_option,
    study_argument,
)


@click.command(
    "report",
    short_help="Write a page on what a study found.",
    epilog=examples(
        "mergesearch report studies/segment-grid.yaml --out report.html",
        "mergesearch report studies/segment-grid.yaml --out report.html --examples 0   # encodes nothing",
    ),
)
@study_argument
@storage_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write.")
@click.option(
    "--examples",
    "n_examples",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Queries in each list with their top documents before and after, for which the dev split is encoded twice, "
    "once and for all; 0 encodes nothing.",
)
def command(study_file: Path, storage: str | None, out: Path, n_examples: int) -> None:
    """Write one self-contained HTML page: the answer, how sure it is, how the search went, and what it cost."""
    announce_loading()
    from mergesearch.cli.progress import phase_bar
    from mergesearch.results.report.write import write_report
    from mergesearch.study_file import parse_study

    parsed = parse_study(study_file)
    with quiet_libraries(), open_existing(study_file, storage) as store, phase_bar("encoding examples") as progress:
        written = write_report(parsed, store, out, n_examples=n_examples, progress=progress)
    if written.why:
        click.echo(f"note: {written.why}", err=True)
    click.echo(f"{written.answer}\nreport: {out} ({out.stat().st_size / 1024:,.0f} KB)")
