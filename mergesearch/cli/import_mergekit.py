"""`mergesearch import-mergekit`: a mergekit configuration as a study file."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import STUDY_FILE, examples


@click.command(
    "import-mergekit",
    short_help="Make a study of a mergekit configuration.",
    epilog=examples(
        "mergesearch import-mergekit merge.yml --out study.yaml",
        "mergesearch import-mergekit merge.yml --out study.yaml --collection ../data/nfcorpus --split dev",
    ),
)
@click.argument("config", metavar="CONFIG.yml", type=STUDY_FILE)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The study file; printed by default.")
@click.option("--collection", metavar="FOLDER", help="What merges are scored on: a judged collection in BEIR layout.")
@click.option("--split", default="dev", show_default=True, help="The collection's split that trials are scored on.")
@click.option("--trials", type=click.IntRange(1), default=40, show_default=True, help="How many merges to evaluate.")
@click.option("--force", is_flag=True, help="Replace the study file when it exists.")
def command(config: Path, out: Path | None, collection: str | None, split: str, trials: int, force: bool) -> None:
    """Make a study file of a mergekit configuration, its numbers as the centres of ranges.

    The merge of the configuration itself is the study's first trial. What a study cannot say is refused, with lines.
    """
    from mergesearch.results.mergekit.importing import PLACEHOLDER, import_mergekit

    if out is not None and out.exists() and not force:
        raise click.UsageError(f"{out} exists; choose another name or replace it with --force")
    folder = Path() if out is None else out.parent
    made = import_mergekit(config, folder=folder, collection=collection, split=split, trials=trials)
    if out is None:
        click.echo(made.text, nl=False)  # its first lines hold the notes
        return
    out.write_text(made.text, encoding="utf-8")
    for note in made.notes:
        click.echo(f"note: {note}")
    todo = "" if collection else f"; fill in {PLACEHOLDER}"
    found = f"{len(made.point)} coefficient{'s' * (len(made.point) != 1)} to search"
    click.echo(f"wrote {out}: {found}{todo}, then: mergesearch run {out}")
