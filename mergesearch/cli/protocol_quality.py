"""`mergesearch protocol quality`: what searched merges are worth on test, on several collections."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import announce_loading, examples, quiet_libraries


@click.command(
    "quality",
    short_help="Retriever, domain models and searched merges on the test splits of several collections.",
    epilog=examples(
        "mergesearch protocol quality studies/quality.yaml                         # everything, or what is left of it",
        "mergesearch protocol quality studies/quality.yaml --collection cranfield  # one collection",
    ),
)
@click.argument("protocol_file", metavar="PROTOCOL.yaml", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--collection", "only", multiple=True, metavar="NAME", help="Work on this one only; several times.")
def command(protocol_file: Path, only: tuple[str, ...]) -> None:
    """Train domain models, search merges on dev, read test once for what was chosen, and print the table.

    What decides the table is in the protocol file. Killed or interrupted, the same command goes on.
    """
    announce_loading()
    from mergesearch.protocols.quality.running import run_protocol

    with quiet_libraries():
        run_protocol(protocol_file, only, click.echo)
