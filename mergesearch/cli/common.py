"""Options and printing that several commands share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from mergesearch.storage.store import StudyStore

F = TypeVar("F", bound=Callable[..., Any])

STUDY_FILE = click.Path(path_type=Path, dir_okay=False)


def study_argument(function: F) -> F:
    """The positional study file."""
    return click.argument("study_file", metavar="STUDY.yaml", type=STUDY_FILE)(function)


def storage_option(function: F) -> F:
    """The database that overrides the study file's."""
    return click.option(
        "--storage",
        metavar="URL",
        callback=warn_of_password,
        help="Database URL; asked in this order: --storage, MERGESEARCH_STORAGE, the file that "
        "MERGESEARCH_STORAGE_FILE names, OPTUNA_STORAGE, the study file, sqlite:///STUDY.db.",
    )(function)


def url_argument(function: F) -> F:
    """The positional database URL, which environment variables may give instead."""
    return click.argument("storage", metavar="[URL]", required=False, callback=warn_of_password)(function)


def warn_of_password(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
    """A callback of arguments and options that take a database's URL."""
    if url is not None:
        from mergesearch.storage.secrets import REMEDY, holds_password

        if holds_password(url):
            click.echo(f"warning: everybody on this machine can see that password in `ps`; {REMEDY}.", err=True)
    return url


def url_or_environment(url: str | None) -> str:
    """The URL that was given, or the environment's."""
    from mergesearch.storage.secrets import FILE_VARIABLE, storage_from_environment

    found = url or storage_from_environment()
    if found is None:
        raise click.UsageError(
            f"name a database: --storage URL, MERGESEARCH_STORAGE, {FILE_VARIABLE} or OPTUNA_STORAGE"
        )
    return found


def address_option(function: F) -> F:
    """The dashboard of the Ray cluster that takes jobs."""
    return click.option(
        "--address",
        envvar="RAY_API_SERVER_ADDRESS",
        default="http://127.0.0.1:8265",
        show_default=True,
        show_envvar=True,
        metavar="URL",
        help="The Ray cluster's dashboard; its token is taken from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.",
    )(function)


def format_option(function: F) -> F:
    """Table for people, JSON for programs."""
    return click.option(
        "-f", "--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True
    )(function)


def examples(*lines: str) -> str:
    """An epilog of real commands, kept as written."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def open_existing(study_file: Path, storage: str | None) -> StudyStore:
    """The recorded study that a study file names, for reading."""
    from mergesearch.errors import StorageError
    from mergesearch.storage.store import StudyStore
    from mergesearch.study_file import parse_study, storage_url

    content = parse_study(study_file).content
    try:
        return StudyStore.open(storage_url(content, storage), content.study, None, exclusive=False)
    except StorageError as error:  # the storage does not know which file it was asked for
        raise type(error)(str(error).replace("STUDY.yaml", str(study_file))) from error


def announce_loading() -> None:
    """A sign of life in a terminal, before libraries and models have been loaded for many seconds."""
    if sys.stderr.isatty():
        click.echo("loading libraries, models and texts …", err=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside: no bars of transformers ("Loading weights", "Writing model shards") and no log lines of Optuna.

    Ours say what matters, and a log file or a pipe should hold nothing else. Imports both libraries.
    """
    from mergesearch.evaluation.loading import no_progress_bar
    from mergesearch.search.quiet import quiet_optuna

    with no_progress_bar(), quiet_optuna():
        yield


_NUMBER = re.compile(r"[+−-]?[\d,.]*( \*)?")


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> None:
    """A table of plain cells: numbers to the right, text to the left.

    In a terminal only the widest column is folded, when the others leave it too little room; elsewhere (a pipe, a
    file) lines are as long as they need to be.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    widest = widths.index(max(widths))
    table = Table(box=None, pad_edge=False)
    for i, header in enumerate(headers):
        numeric = all(_NUMBER.fullmatch(row[i]) for row in cells)
        table.add_column(
            Text(header, style="bold"),
            justify="right" if numeric else "left",
            no_wrap=i != widest,
            min_width=None if i == widest else widths[i],
            overflow="fold",
        )
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(sum(widths) + 2 * len(widths), len(title), 1)
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


class Tabled(Protocol):
    """What is for people and for programs."""

    def tables(self) -> Iterable[tuple[str, Sequence[str], Iterable[Sequence[Any]]]]:
        """Title, headers and rows."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""


def print_result(found: Tabled, output: str, lines: Iterable[str] = ()) -> None:
    """As `format_option` says: JSON, or tables with lines below them."""
    if output == "json":
        print_json(found.to_dict())
        return
    for title, headers, rows in found.tables():
        print_table(headers, rows, title=title)
        click.echo()
    for line in lines:
        click.echo(line)


def print_json(value: Any) -> None:
    """JSON on standard output, nothing else."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
