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
        "mergesearch export studies/segment-grid.yaml --out merged --push-to me/merged --private",
    ),
)
@study_argument
@storage_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--trial", type=int, help="This trial instead of the chosen one.")
@click.option("--force", is_flag=True, help="Replace the folder when it exists.")
@click.option("--push-to", metavar="OWNER/NAME", help="Upload the export to the Hugging Face hub, too.")
@click.option("--private", is_flag=True, help="With --push-to: make the repository private.")
def command(
    study_file: Path,
    storage: str | None,
    out: Path,
    trial: int | None,
    force: bool,
    push_to: str | None,
    private: bool,
) -> None:
    """Save the chosen merge as a folder that sentence-transformers and transformers load, and re-score it.

    With --push-to it is uploaded as one commit, without local paths; the token is HF_TOKEN, or that of `hf auth login`.
    """
    if private and push_to is None:
        raise click.UsageError("--private is for --push-to")
    announce_loading()
    from mergesearch.cli.progress import phase_bar
    from mergesearch.resolving import load_study
    from mergesearch.results.export import export_merge
    from mergesearch.results.push import open_target, push

    target = None if push_to is None else open_target(push_to, private=private)
    study = load_study(study_file)
    with quiet_libraries(), open_existing(study_file, storage) as store, phase_bar("re-scoring") as progress:
        exported = export_merge(study, store, out, trial=trial, force=force, progress=progress)
    for warning in exported.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(
        f"exported trial {exported.trial} to {exported.folder}: dev {exported.metric} "
        f"{exported.recorded:.4f} recorded, {exported.rescored:.4f} re-scored from the saved files"
    )
    if target is not None:
        with quiet_libraries():
            where = push(exported.folder, target)
        click.echo(f"pushed to {where}")
