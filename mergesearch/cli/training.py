"""What the commands that train have in common."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergesearch.cli.common import F, quiet_libraries

if TYPE_CHECKING:
    from mergesearch.training import Adapted, AdapterSettings, Trained


def texts_option(*names: str, help: str, exists: bool = True) -> Callable[[F], F]:  # noqa: A002 - click's name
    """What is read: folders and files, one or more."""
    return click.option(
        *names,
        type=click.Path(path_type=Path, exists=exists),
        required=True,
        multiple=True,
        metavar="FOLDER|FILE",
        help=help,
    )


def shape_options(*, rank: int, alpha: float, dropout: float) -> Callable[[F], F]:
    """Of an adapter, with these defaults."""
    return _all_of(
        click.option("--rank", type=click.IntRange(1), default=rank, show_default=True),
        click.option("--alpha", type=float, default=alpha, show_default=True, help="Scale, relative to the rank."),
        click.option(
            "--dropout", type=float, default=dropout, show_default=True, help="Of an adapted module's inputs."
        ),
    )


def dtype_option(function: F) -> F:
    """Of what is frozen, and of the computation."""
    choice = click.Choice(["auto", "float32", "bfloat16"])
    return click.option("--dtype", type=choice, default="auto", show_default=True)(function)


def process_options(function: F) -> F:
    """How a training is carried out."""
    return _all_of(
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …"),
        click.option(
            "--checkpointing", is_flag=True, help="Less memory and more time: activations are computed twice."
        ),
        click.option("--restart", is_flag=True, help="Throw away what an earlier process left of this training."),
    )(function)


def _all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options in the order of the help."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def take_shape(kind: Any, settings: dict[str, Any]) -> AdapterSettings:
    """The adapter's shape, taken out of a command's options."""
    from mergesearch.training import AdapterSettings

    return AdapterSettings(kind=kind, **{name: settings.pop(name) for name in ("rank", "alpha", "dropout", "targets")})


@contextmanager
def can_be_gone_on_with() -> Iterator[None]:
    """A training inside is quiet, and who interrupts it is told how it goes on."""
    try:
        with quiet_libraries():
            yield
    except KeyboardInterrupt:
        click.echo(f"interrupted. Go on with: {shlex.join(['mergesearch', *sys.argv[1:]])}", err=True)
        raise


def tell_trained(made: Adapted | Trained, what: str) -> None:
    """What was made of what, and how far the loss fell."""
    if made.before:
        click.echo(f"{made.folder} is there already, made with these settings")
    click.echo(f"{made.folder}: {what}, loss {made.losses[0]:.3f} → {made.losses[1]:.3f}")
