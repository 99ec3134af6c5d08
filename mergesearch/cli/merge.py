"""`mergesearch merge`: an export made again from its recipe."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import STUDY_FILE, announce_loading, examples, quiet_libraries


@click.command(
    "merge",
    short_help="Make a model from a recipe alone.",
    epilog=examples(
        "mergesearch merge merged/mergesearch.json --out again",
        "mergesearch merge mergesearch.json --out again --source domain=../models/domain",
    ),
)
@click.argument("recipe", metavar="RECIPE.json", type=STUDY_FILE)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--source",
    "sources",
    metavar="NAME=PATH",
    multiple=True,
    help="Where a source lies now: a folder, a hub id or package:NAME. Its content has to be what was merged.",
)
@click.option("--device", help="Where to merge; as in the export by default, for last bits may depend on it.")
@click.option(
    "--trust-remote-code", "trusted", metavar="NAME", multiple=True, help="Run this source's own Python code."
)
@click.option("--force", is_flag=True, help="Replace the folder when it is an export.")
def command(
    recipe: Path, out: Path, sources: tuple[str, ...], device: str | None, trusted: tuple[str, ...], force: bool
) -> None:
    """Make a model from mergesearch.json of an export, or from a recipe alone.

    Needs the sources, and neither study file nor database. The weights are those of the export to the bit, or the
    merge is refused.
    """
    announce_loading()
    from mergesearch.results.remake import merge_recipe

    moved = dict(_parted(entry) for entry in sources)
    with quiet_libraries():
        made = merge_recipe(recipe, out, sources=moved, device=device, trusted=trusted, force=force)
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    told = "as in the export" if made.same else "none was recorded to compare with"
    click.echo(f"merged to {made.folder}: weights {made.weights[:12]}…, {told}")


def _parted(entry: str) -> tuple[str, str]:
    name, equals, where = entry.partition("=")
    if not (name and equals and where):
        raise click.UsageError(f"--source takes NAME=PATH, found {entry!r}")
    return name, where
