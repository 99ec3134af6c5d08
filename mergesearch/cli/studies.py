"""`mergesearch studies`: what a database holds."""

from __future__ import annotations

from dataclasses import asdict

import click

from mergesearch.cli.common import (
    examples,
    format_option,
    print_json,
    print_table,
    url_argument,
    url_or_environment,
    warn_of_password,
)


@click.command(
    "studies",
    short_help="List the studies of a database.",
    epilog=examples(
        "mergesearch studies sqlite:///my-study.db", "mergesearch studies -f json   # of MERGESEARCH_STORAGE"
    ),
)
@url_argument
@click.option("--storage", "option", metavar="URL", callback=warn_of_password, help="The same as URL.")
@format_option
def command(storage: str | None, option: str | None, output: str) -> None:
    """List the studies of a database: trials, failures and the highest dev score of each."""
    from mergesearch.storage.listing import list_studies

    if storage and option:
        raise click.UsageError("name one database: URL or --storage")
    studies = list_studies(url_or_environment(storage or option))
    if output == "json":
        print_json([{**asdict(study), "created_at": study.created_at.isoformat()} for study in studies])
        return
    headers = ["study", "file", "created (UTC)", "complete", "pruned", "failed", "unfinished", "highest dev score"]
    rows = [
        (
            s.name, s.file_name, f"{s.created_at:%Y-%m-%d %H:%M}", s.complete, s.pruned, s.failed, s.unfinished,
            "" if s.best_value is None else f"{s.best_value:.4f}{s.on_queries}",
        )
        for s in studies
    ]  # fmt: skip
    print_table(headers, rows)
