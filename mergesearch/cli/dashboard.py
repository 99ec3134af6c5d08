"""`mergesearch dashboard`: optuna-dashboard on the study's database."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import STUDY_FILE, examples, storage_option, url_or_environment


@click.command(
    "dashboard",
    short_help="Open optuna-dashboard on a study.",
    epilog=examples(
        "mergesearch dashboard studies/segment-grid.yaml",
        "mergesearch dashboard --storage sqlite:///quickstart.db --port 8081",
    ),
)
@click.argument("study_file", metavar="[STUDY.yaml]", type=STUDY_FILE, required=False)
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="It has no authentication: keep it local.")
@click.option("--port", default=8080, show_default=True)
def command(study_file: Path | None, storage: str | None, host: str, port: int) -> None:
    """Open optuna-dashboard on the study database, on this machine only unless told otherwise."""
    from mergesearch.storage.dashboard import serve
    from mergesearch.study_file import parse_study, storage_url

    if study_file is not None:
        storage = storage_url(parse_study(study_file).content, storage)
    url = url_or_environment(storage)
    click.echo(f"dashboard at http://{host}:{port}/ (Ctrl-C ends it)")
    serve(url, host=host, port=port)
