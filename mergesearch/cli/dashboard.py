"""`mergesearch dashboard`: optuna-dashboard on the study's database."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import click

from mergesearch.cli.common import STUDY_FILE, examples, storage_option, url_or_environment


@click.command(
    "dashboard",
    short_help="Open optuna-dashboard on a study.",
    epilog=examples(
        "mergesearch dashboard studies/segment-grid.yaml",
        "mergesearch dashboard --storage sqlite:///quickstart.db --port 8081",
        "MERGESEARCH_DASHBOARD_TOKEN=$(openssl rand -hex 16) mergesearch dashboard my.yaml --read-only",
    ),
)
@click.argument("study_file", metavar="[STUDY.yaml]", type=STUDY_FILE, required=False)
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Without a token, keep it local.")
@click.option("--port", default=8080, show_default=True)
@click.option("--read-only", is_flag=True, help="Nothing can be changed or deleted.")
@click.option(
    "--auth-token",
    metavar="TOKEN",
    envvar="MERGESEARCH_DASHBOARD_TOKEN",
    help="Callers must know it: as a password, as a bearer token, or as ?token= in the address. "
    "MERGESEARCH_DASHBOARD_TOKEN keeps it out of the process list.",
)
@click.option(
    "--auth-token-file",
    type=click.File(),
    envvar="MERGESEARCH_DASHBOARD_TOKEN_FILE",
    help="A file that holds the token and nothing else.",
)
@click.option(
    "--artifacts",
    metavar="LOCATION",
    help="Folder or bucket of files attached to trials; by default the study file's.",
)
def command(
    study_file: Path | None,
    storage: str | None,
    host: str,
    port: int,
    read_only: bool,
    auth_token: str | None,
    auth_token_file: TextIO | None,
    artifacts: str | None,
) -> None:
    """Open optuna-dashboard on the study database, on this machine only unless told otherwise."""
    from mergesearch.storage.dashboard import application, page_of, server
    from mergesearch.storage.secrets import storage_from_environment
    from mergesearch.study_file import artifact_location, parse_study, storage_url

    study = None
    if study_file is None and storage is None and storage_from_environment() is None:
        raise click.UsageError("name a study file, or a database with --storage or MERGESEARCH_STORAGE")
    if study_file is not None:
        parsed = parse_study(study_file)
        study, storage = parsed.content.study, storage_url(parsed.content, storage)
        artifacts = artifacts or artifact_location(parsed)
    url = url_or_environment(storage)
    if auth_token is None and auth_token_file is not None:
        auth_token = auth_token_file.read().strip()
    if auth_token == "":
        raise click.UsageError("the token is empty")
    shown = application(url, token=auth_token, read_only=read_only, artifacts=artifacts)
    with server(shown, host=host, port=port) as serving:
        page = "/" if study is None else page_of(url, study)
        password = "" if auth_token is None else ", any user, the token as password"
        click.echo(f"dashboard at http://{host}:{serving.server_port}{page}{password} (Ctrl-C ends it)")
        if auth_token is None and host not in ("127.0.0.1", "localhost", "::1"):
            click.echo("whoever reaches it can change and delete studies: see --auth-token and --read-only", err=True)
        serving.serve_forever()
