"""The command line: one file per command; each parses, calls one library function and prints.

Commands import the library inside their functions, so that `mergesearch --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from mergesearch.cli import (
    adapt,
    best,
    clean,
    compare,
    control,
    dashboard,
    evaluate,
    export,
    import_mergekit,
    jobs,
    merge,
    methods,
    plan,
    protocol,
    quickstart,
    refine,
    report,
    run,
    status,
    studies,
    submit,
    synthesize,
    train_expert,
    train_reranker,
    validate,
)
from mergesearch.errors import MergesearchError

INTERRUPTED = 130


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Search the merge coefficients of retrieval models.

\b
  mergesearch quickstart                 see a real study, in a few minutes
  mergesearch validate studies/my.yaml   check a study file, its models and its data
  mergesearch run studies/my.yaml        run it, or go on with it
  mergesearch evaluate studies/my.yaml   the winner and every source on the test split
  mergesearch report studies/my.yaml --out report.html   a page on what was found
  mergesearch export studies/my.yaml --out merged""",
    epilog="""\b
Exit codes: 0 done, 1 unexpected failure, 2 bad input or usage, 3 no trial has a score yet,
4 study database, 5 workers, 6 export refused or not equal to what was scored, 130 interrupted.""",
)
@click.version_option(package_name="mergesearch")
def cli() -> None:
    """The `mergesearch` program."""


for module in (
    quickstart,
    validate,
    plan,
    run,
    refine,
    control,
    studies,
    status,
    best,
    evaluate,
    compare,
    report,
    export,
    merge,
    import_mergekit,
    dashboard,
    methods,
    adapt,
    train_expert,
    train_reranker,
    synthesize,
    protocol,
    submit,
    jobs,
    clean,
):
    cli.add_command(module.command)


def main() -> NoReturn:
    """Entry point of the `mergesearch` program."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    before = signal.signal(signal.SIGTERM, _interrupt), sys.unraisablehook
    sys.unraisablehook = _ask_again
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = INTERRUPTED
    except BrokenPipeError:  # `mergesearch status … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except MergesearchError as error:
        click.echo(f"error: {error}", err=True)
        code = error.exit_code
    finally:  # for whoever calls this in a process of their own
        signal.signal(signal.SIGTERM, before[0])
        sys.unraisablehook = before[1]
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """A polite request to stop is treated like Ctrl-C: what is recorded stays and can be gone on with."""
    raise KeyboardInterrupt


def _ask_again(dropped: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in a destructor; an interrupt that came just then is sent once more."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _interrupt_elsewhere)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_elsewhere(number: int, frame: FrameType | None) -> None:
    """An interrupt, except in `_ask_again` itself, which a slow machine may not have left yet: it would be dropped."""
    outer = frame
    while outer is not None:
        if outer.f_code is _ask_again.__code__:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        outer = outer.f_back
    _interrupt(number, frame)
