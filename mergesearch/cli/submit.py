"""`mergesearch submit`: run a study as a job of a Ray cluster."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from mergesearch.cli.common import address_option, examples, study_argument


@click.command(
    "submit",
    short_help="Run a study as a job of a Ray cluster.",
    epilog=examples(
        "mergesearch submit my.yaml --address http://head:8265",
        "mergesearch submit my.yaml --address http://head:8265 -- --trials 40 --count 8",
        "mergesearch jobs logs --follow JOB --address http://head:8265",
    ),
)
@study_argument
@address_option
@click.argument("options", metavar="[-- RUN OPTIONS]", nargs=-1, type=click.UNPROCESSED)
def command(study_file: Path, address: str, options: tuple[str, ...]) -> None:
    """Run a study as a job of a Ray cluster, which needs this version of mergesearch installed.

    The study file travels there, and the file of examples that it names. Models and collections must be there: on
    storage that all nodes share, by absolute path, or by their names on the hub. The database's URL is to be in the
    cluster's environment, in MERGESEARCH_STORAGE or in a file that MERGESEARCH_STORAGE_FILE names; it never travels.
    """
    from mergesearch.cli import run
    from mergesearch.study_checks import check_file
    from mergesearch.study_file import parse_study
    from mergesearch.submitting import entrypoint, pack
    from mergesearch.workers.ray_jobs import RayJobs

    started_with = entrypoint(options)
    run.command.make_context("run", [str(study_file), *options])  # complains of what `run` would not understand
    parsed = parse_study(study_file)
    check_file(parsed)
    with tempfile.TemporaryDirectory(prefix="mergesearch-") as folder:
        pack(parsed, Path(folder))
        job = RayJobs(address).submit(parsed.content.study, started_with, Path(folder))
    click.echo(f"submitted: {job}")
    click.echo(f"next: mergesearch jobs logs --follow {job} --address {address}")
