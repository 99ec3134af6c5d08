"""`mergesearch jobs`: the studies that were submitted to a Ray cluster."""

from __future__ import annotations

from dataclasses import asdict

import click

from mergesearch.cli.common import address_option, examples, format_option, print_json, print_table


@click.group(
    "jobs",
    short_help="List, follow and stop submitted studies.",
    epilog=examples(
        "mergesearch jobs list --address http://head:8265",
        "mergesearch jobs logs --follow my-study-1a2b3c4d --address http://head:8265",
        "mergesearch jobs stop my-study-1a2b3c4d --address http://head:8265",
    ),
)
def command() -> None:
    """List, follow and stop the studies that were submitted to a Ray cluster."""


@command.command("list")
@address_option
@format_option
def list_jobs(address: str, output: str) -> None:
    """Every submitted study that the cluster remembers."""
    from mergesearch.workers.ray_jobs import RayJobs

    jobs = RayJobs(address).list()
    if output == "json":
        print_json([{**asdict(job), "started": job.started and job.started.isoformat()} for job in jobs])
        return
    rows = [
        (j.name, j.study, j.state, j.started and f"{j.started:%Y-%m-%d %H:%M}", last_words(j.message)) for j in jobs
    ]
    print_table(["job", "study", "state", "started (UTC)", "what"], rows)


@command.command()
@click.argument("job")
@address_option
@click.option("--follow", is_flag=True, help="Go on until the job ends; exit code 5 where it failed.")
@click.pass_context
def logs(context: click.Context, job: str, address: str, follow: bool) -> None:
    """What a job prints."""
    from mergesearch.errors import WorkerError
    from mergesearch.workers.ray_jobs import FAILED, RayJobs

    jobs = RayJobs(address)
    if not follow:
        click.echo(jobs.logs(job), nl=False)
        return
    for piece in jobs.follow(job):
        click.echo(piece, nl=False)
    if jobs.state(job) == FAILED:
        context.exit(WorkerError.exit_code)


@command.command()
@click.argument("job")
@address_option
def stop(job: str, address: str) -> None:
    """End a job as Ctrl-C would: what is recorded stays, and the study can be gone on with."""
    from mergesearch.workers.ray_jobs import RayJobs

    click.echo("asked to stop" if RayJobs(address).stop(job) else "it has ended already")


def last_words(message: str) -> str:
    """Its last words: a failed job's message ends with the error, after up to 20,000 characters of its log."""
    return message if len(message) <= 120 else f"… {message[-118:]}"
