"""`mergesearch plan`: what a study will do and cost, before any weight is loaded."""

from __future__ import annotations

from pathlib import Path

import click

from mergesearch.cli.common import (
    examples,
    format_option,
    print_result,
    study_argument,
)


@click.command(
    "plan",
    short_help="Show what a study will do and cost.",
    epilog=examples("mergesearch plan studies/segment-grid.yaml", "mergesearch plan -f json my.yaml"),
)
@study_argument
@format_option
def command(study_file: Path, output: str) -> None:
    """Show sources, groups, space, trials, tokens per trial, memory and estimated time. Loads no weights."""
    from mergesearch.planning import make_plan
    from mergesearch.resolving import load_study

    plan = make_plan(load_study(study_file))
    print_result(plan, output, [plan.summary()])
