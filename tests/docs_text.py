"""What README and docs/ show: their pages, blocks and commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from mergesearch.cli import cli

ROOT = Path(__file__).resolve().parents[1]
USER_PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
"""What users read."""
SHELL = ("console", "bash", "sh")
"""Languages of blocks that show commands."""
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Shown:
    """A command as it is typed, without prompt and comment, and where it was first seen."""

    text: str
    page: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language; "" for those without one."""
    return [text for found, text in _BLOCK.findall(read(page)) if found == language]


def commands(*programs: str) -> list[Shown]:
    """What is shown of these programs in blocks and in the midst of sentences, each once, in order."""
    found: dict[str, Shown] = {}
    for page in USER_PAGES:
        lines = [line for text in command_blocks(page) for line in text.splitlines()]
        sentences = " ".join(_BLOCK.sub("", read(page)).split())  # code in a sentence may go over two lines
        for line in [*lines, *_INLINE.findall(sentences)]:
            text = " ".join(re.sub(r"\s#.*", "", line).split()).removeprefix("$ ")
            text = re.sub(r"^docker .* exec \S+ (?=mergesearch)", "", text)
            if text.split(" ")[0] in programs and " " in text:
                found.setdefault(text, Shown(text, page))
    return list(found.values())


def command_blocks(page: str) -> list[str]:
    """The blocks that show what is typed, and not what is printed or what a file holds."""
    plain = [text for text in blocks(page, "") if re.match(r"(mergesearch|pip|make|git|install|export) ", text)]
    return [*plain, *(text for language in SHELL for text in blocks(page, language))]


def parse(text: str) -> None:
    """Let the program parse a command, without running it.

    Raises:
        click.UsageError: it does not take it.
    """
    command: click.Command = cli
    context = None
    name, *rest = shlex.split(text)
    while isinstance(command, click.Group):
        context = command.make_context(name, rest, parent=context)
        name, resolved, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert resolved is not None, text
        command = resolved
    command.make_context(name, rest, parent=context)
