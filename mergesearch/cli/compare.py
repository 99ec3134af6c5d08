"""`mergesearch compare`: studies side by side."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from mergesearch.cli.common import (
    STUDY_FILE,
    announce_loading,
    examples,
    format_option,
    open_existing,
    print_result,
    quiet_libraries,
    storage_option,
)


@click.command(
    "compare",
    short_help="Put studies side by side, with paired tests.",
    epilog=examples(
        "mergesearch compare studies/segment-grid.yaml studies/segment-surrogate.yaml",
        "mergesearch compare grid.yaml tpe.yaml cmaes.yaml --out compare.html",
        "mergesearch compare grid.yaml tpe.yaml -f json",
    ),
)
@click.argument("study_files", metavar="STUDY.yaml STUDY2.yaml...", type=STUDY_FILE, nargs=-1, required=True)
@storage_option
@format_option
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a page as well.")
def command(study_files: tuple[Path, ...], storage: str | None, output: str, out: Path | None) -> None:
    """Put studies side by side: methods, costs, dev scores with their luck, test scores, and paired tests of these."""
    if len(study_files) < 2:
        raise click.UsageError("name two studies or more")
    announce_loading()
    from mergesearch.results.comparing import compare_studies
    from mergesearch.results.report.comparison import render_comparison
    from mergesearch.results.report.write import check_page, view_of, write_page
    from mergesearch.study_file import parse_study

    if out is not None:
        check_page(out)
    parsed = [parse_study(file) for file in study_files]
    with quiet_libraries(), ExitStack() as stack:
        stores = [stack.enter_context(open_existing(file, storage)) for file in study_files]
        views = [view_of(p, store)[0] for p, store in zip(parsed, stores, strict=True)]
        studies = compare_studies(views)
        if out is not None:
            write_page(out, render_comparison(studies, views))
    notes = [f"note: {note}" for note in studies.notes]
    print_result(studies, output, [*notes, f"page: {out}"] if out is not None else notes)
