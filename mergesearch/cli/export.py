"""`mergesearch export`: the chosen merge as a model folder."""

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
    "export",
    short_help="Save the chosen merge as a model folder.",
    epilog=examples(
        "mergesearch export studies/segment-grid.yaml --out merged",
        "mergesearch export studies/segment-grid.yaml --out merged --trial 7 --force",
    ),
)
@study_argument
@storage_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--trial", type=int, help="This trial instead of the chosen one.")
@click.option("--force", is_flag=True, help="Replace the folder when it exists.")
def command(study_file: Path, storage: str | None, out: Path, trial: int | None, force: bool) -> None:
    """Save the chosen merge as a folder that sentence-transformers and transformers load, and re-score it."""
    announce_loading()
    from mergesearch.cli.progress import phase_bar
    from mergesearch.resolving import load_study
    from mergesearch.results.export import export_merge

    study = load_study(study_file)
    with quiet_libraries(), open_existing(study_file, storage) as store, phase_bar("re-scoring") as progress:
        exported = export_merge(study, store, out, trial=trial, force=force, progress=progress)
    for warning in exported.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(
        f"exported trial {exported.trial} to {exported.folder}: dev {exported.metric} "
        f"{exported.recorded:.4f} recorded, {exported.rescored:.4f} re-scored from the saved files"
    )
