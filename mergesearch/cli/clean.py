"""`mergesearch clean`: remove what nothing needs any more."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import STUDY_FILE, examples, print_table, storage_option


@click.command(
    "clean",
    short_help="Remove embeddings and cached files that nothing needs.",
    epilog=examples(
        "mergesearch clean --dry-run                    # what would go, with sizes",
        "mergesearch clean my.yaml other.yaml --days 7  # their artifact folders, too",
        "mergesearch clean --storage sqlite:///my.db",
    ),
)
@click.argument("study_files", metavar="[STUDY.yaml...]", type=STUDY_FILE, nargs=-1)
@storage_option
@click.option(
    "--days", type=click.FloatRange(1), default=30, show_default=True, help="What was used within so many days stays."
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def command(study_files: tuple[Path, ...], storage: str | None, days: float, dry_run: bool) -> None:
    """Remove what can be made again and has not been used for long, here and in the artifact folders of STUDY.yaml.

    What a study in the databases refers to stays: those of the study files, of --storage, or of the environment. Name
    all whose studies share an artifact folder or this machine's cache.
    """
    from mergesearch.cleaning import find_leftovers
    from mergesearch.storage.secrets import storage_from_environment
    from mergesearch.study_file import artifact_location, parse_study, storage_url

    parsed = [parse_study(file) for file in study_files]
    url = storage or storage_from_environment()
    urls = [storage_url(p.content, storage) for p in parsed] or ([url] if url else [])
    locations = [location for p in parsed if (location := artifact_location(p)) is not None]
    found = find_leftovers(urls, locations, days=days)
    if dry_run:
        print_table(["MiB", "what", "where"], [(f"{f.n_bytes / 2**20:.2f}", f.what, f.paths[0]) for f in found])
    else:
        for leftover in found:
            leftover.remove()
    total = sum(f.n_bytes for f in found) / 2**20
    click.echo(f"{'would remove' if dry_run else 'removed'} {len(found)} entries, {total:,.1f} MiB")
