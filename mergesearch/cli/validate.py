"""`mergesearch validate`: check a study file, its sources and its collections."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import examples, study_argument


@click.command(
    "validate",
    short_help="Check a study file, its models and its data.",
    epilog=examples(
        "mergesearch validate studies/segment-grid.yaml",
        "mergesearch validate --file-only studies/segment-grid-e5-mistral.yaml   # models not at hand",
    ),
)
@study_argument
@click.option("--file-only", is_flag=True, help="Look at the file alone: no model, no collection.")
def command(study_file: Path, file_only: bool) -> None:
    """Check a study file and report every problem at once, with its line. Loads no weights."""
    from mergesearch.resolving import resolve
    from mergesearch.study_checks import check_file
    from mergesearch.study_file import parse_study

    parsed = parse_study(study_file)
    if file_only:
        check_file(parsed)
        click.echo(f"{study_file}: the file is valid; models and collections were not looked at")
        return
    study = resolve(parsed)
    queries = sum(len(c.query_ids) for c in study.collections)
    documents = sum(len(c.doc_ids) for c in study.collections)
    merged = sum(g.merged for g in study.groups)
    click.echo(
        f"{study_file}: valid; {len(study.folders)} sources, {merged} merged groups, "
        f"{len(study.space.dimensions)} coefficients to search, {queries:,} dev queries, {documents:,} documents"
    )
    for note in study.notes():
        click.echo(f"note: {note}")
