"""`mergesearch best`: the chosen merge of a study."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mergesearch.cli.common import (
    examples,
    format_option,
    open_existing,
    print_json,
    print_table,
    storage_option,
    study_argument,
)


@click.command(
    "best",
    short_help="Show the chosen merge.",
    epilog=examples("mergesearch best studies/segment-grid.yaml", "mergesearch best -f json my.yaml"),
)
@study_argument
@storage_option
@format_option
def command(study_file: Path, storage: str | None, output: str) -> None:
    """Show the merge that the study chooses, its coefficients, and the highest scoring one beside it."""
    from mergesearch.resolving import load_study
    from mergesearch.results.choose import choose
    from mergesearch.results.coefficients import coefficient_words
    from mergesearch.results.front import front_table
    from mergesearch.sources.layout import span

    study = load_study(study_file)
    with open_existing(study_file, storage) as store:
        choice = choose(study, store)
        recipe, result = store.recipe(choice.number), store.result(choice.number)
    fusion = None if result is None else result.fusion
    if output == "json":
        print_json(
            {**choice.to_dict(), "recipe": recipe.to_dict(), "fingerprint": recipe.fingerprint, "fusion": fusion}
        )
        return
    click.echo(choice.describe())
    rows = [(g.name, span(g.places), words) for g in recipe.groups for words in coefficient_words(recipe, g)]
    print_table(["group", "covers", "coefficients"], rows)
    if choice.front:
        click.echo("\nPareto front (selection scores); `export --trial N` takes another of its points")
        print_table(*front_table(choice.front))
    if fusion is not None:
        click.echo(f"λ = {fusion:g}: the re-ranker's share in the sum with the first stage's scores")
    for collection, prompts in recipe.prompts.items():
        for kind, text in prompts.items():
            click.echo(f"{collection}: before every {kind} stands {json.dumps(text, ensure_ascii=False)}")
