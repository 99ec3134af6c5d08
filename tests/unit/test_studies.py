"""Every study file that is shipped is sound and says how to run it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest

from mergesearch.cli import cli
from mergesearch.protocols.quality.schema import read_protocol
from mergesearch.study_checks import check_file
from mergesearch.study_file import parse_study

ROOT = Path(__file__).resolve().parents[2]
QUALITY = ROOT / "studies" / "quality.yaml"  # a protocol, which makes its studies itself
FILES = sorted(f for pattern in ("*.yaml", "*.yml") for f in (ROOT / "studies").rglob(pattern) if f != QUALITY)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_study_is_valid(file: Path) -> None:
    check_file(parse_study(file))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_study_opens_with_the_command_that_runs_it(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# mergesearch run ")
    program, name, *arguments = shlex.split(first.removeprefix("# ").partition("     ")[0])
    command = cli.commands[name]
    assert program == "mergesearch"
    # Parsing only: unknown options and missing arguments are errors.
    context: click.Context = command.make_context(name, arguments)
    assert context.params["study_files"] == (file.relative_to(ROOT),)


def test_the_quality_protocol_is_valid_and_says_how_to_run_it() -> None:
    assert set(read_protocol(QUALITY).content.collections) == {
        "nfcorpus",
        "medquad_qa",
        "cosqa",
        "cranfield",
        "xquad_de",
    }
    assert QUALITY.read_text(encoding="utf-8").startswith("# mergesearch protocol quality studies/quality.yaml ")


def test_study_names_are_unique() -> None:
    """They share a database when a storage is given for all of them."""
    names = [parse_study(file).content.study for file in FILES]
    assert FILES
    assert len(set(names)) == len(names)
