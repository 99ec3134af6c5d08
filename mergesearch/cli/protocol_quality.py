"""`mergesearch protocol quality`: what searched merges are worth on test, on several collections."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from mergesearch.cli.common import announce_loading, examples, print_json, print_table, quiet_libraries


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
@click.option(
    "-f", "--format", "output", type=click.Choice(["table", "markdown", "json"]), default="table", show_default=True
)
@click.option("--only-table", is_flag=True, help="Run nothing: print what the finished collections have left.")
def command(protocol_file: Path, only: tuple[str, ...], output: str, only_table: bool) -> None:
    """Train domain models, search merges on dev, read test once for what was chosen, and print the table.

    What decides the table is in the protocol file. Killed or interrupted, the same command goes on.
    """
    announce_loading()
    from mergesearch.protocols.quality.running import run_protocol
    from mergesearch.protocols.quality.schema import read_protocol
    from mergesearch.protocols.quality.table import markdown, protocol_result, tables

    if not only_table:
        with quiet_libraries():
            run_protocol(protocol_file, only, partial(click.echo, err=True))
    result = protocol_result(read_protocol(protocol_file))
    if output == "json":
        print_json(result)
    elif output == "markdown":
        click.echo(markdown(tables(result)))
    else:
        for title, headers, rows in tables(result):
            print_table(headers, rows, title=title)
            click.echo()
    if result["unfinished"]:
        click.echo(f"not finished: {', '.join(result['unfinished'])}; the same command goes on", err=True)
