"""`mergesearch protocol`: whole published experiments, one command each."""

from __future__ import annotations

import click

from mergesearch.cli import protocol_limited_data, protocol_quality
from mergesearch.cli.common import examples


@click.group(
    "protocol",
    short_help="Run a published experiment as a whole.",
    epilog=examples(
        "mergesearch protocol limited-data studies/limited-data.yaml --work runs/limited-data --plan",
        "mergesearch protocol quality studies/quality.yaml",
    ),
)
def command() -> None:
    """Run published experiments: studies, their rivals and their tests. Each prints its plan first."""


command.add_command(protocol_limited_data.command)
command.add_command(protocol_quality.command)
