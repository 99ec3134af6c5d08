"""`mergesearch merge`: one merge without a search, or an export made again from its recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import STUDY_FILE, announce_loading, examples, quiet_libraries


@click.command(
    "merge",
    short_help="Merge once without a search, or again from a recipe.",
    epilog=examples(
        "mergesearch merge --method task_arithmetic --source retriever=models/retriever --source domain=models/domain "
        "--base org/base --out merged",
        "mergesearch merge --source a=models/a --source b=models/b --set weight.a=0.7 --set weight.b=0.3 --out merged",
        "mergesearch merge study.yaml --set weight.domain=0.4 --out merged",
        "mergesearch merge merged/mergesearch.json --out again",
        "mergesearch merge mergesearch.json --out again --source domain=../models/domain",
    ),
)
@click.argument("file", metavar="[STUDY.yaml|RECIPE.json]", type=STUDY_FILE, required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--source",
    "sources",
    metavar="NAME=MODEL",
    multiple=True,
    help="What to merge: a hub id, a folder or package:NAME, under a name of your own. With a recipe: where a source "
    "lies now; its content has to be what was merged.",
)
@click.option("--method", help="A merge method; `mergesearch methods` lists them.  [default: linear]")
@click.option(
    "--template",
    metavar="NAME",
    help="The source whose architecture, tokenizer and encoding are taken.  [default: the first]",
)
@click.option("--base", metavar="NAME|MODEL", help="What task vectors are taken from.")
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="A coefficient (weight, weight.SOURCE, weight.SOURCE.segment_1) or an option of the method; else it is as the "
    "method declares it for one shot.",
)
@click.option(
    "--embeddings",
    type=click.Choice(["merged", "template"]),
    help="Merge token embeddings as the layers, or take the template's.  [default: merged]",
)
@click.option(
    "--other-vocabulary",
    type=click.Choice(["refuse", "template", "shared_tokens"]),
    help="Sources with another vocabulary: refuse them, merge layers only, or also the tokens that all have.  "
    "[default: refuse]",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: float32]")
@click.option("--seed", type=click.IntRange(0), help="Of random masks.  [default: 0]")
@click.option("--device", help="Where to merge; as in the export by default, for last bits may depend on it.")
@click.option(
    "--trust-remote-code", "trusted", metavar="NAME", multiple=True, help="Run this source's own Python code."
)
@click.option("--force", is_flag=True, help="Replace the folder when it is an export.")
def command(
    file: Path | None,
    out: Path,
    sources: tuple[str, ...],
    settings: tuple[str, ...],
    device: str | None,
    trusted: tuple[str, ...],
    force: bool,
    **given: Any,
) -> None:
    """Merge once, without a search and without queries, and save a folder like an export.

    What is merged is named here (--source), or it is a study's sources (STUDY.yaml): coefficients are those that are
    set, and else what the method's paper merges with. Nothing is scored.

    Or make the model of a recipe again (RECIPE.json, such as mergesearch.json of an export): needs the sources, and
    neither study file nor database. The weights are those of the export to the bit, or the merge is refused.
    """
    given = {name: value for name, value in given.items() if value is not None}
    named = _pairs("--source", "NAME=MODEL", sources)
    values = {name: _value(text) for name, text in _pairs("--set", "NAME=VALUE", settings).items()}
    recipe = file is not None and file.suffix == ".json"
    if file is not None and given:
        what = "a recipe" if recipe else "a study file"
        raise click.UsageError(f"{what} says so itself: --{', --'.join(given)}".replace("_", "-"))
    if recipe and values:
        raise click.UsageError("a recipe is followed as it is: --set is for merges that are made anew")
    if file is None and not named:
        raise click.UsageError("name what to merge: --source NAME=MODEL, twice or more, STUDY.yaml or RECIPE.json")
    if file is not None and not recipe and (named or trusted):
        raise click.UsageError("the study file names the sources: --source and --trust-remote-code are not for it")
    announce_loading()
    with quiet_libraries():
        if recipe:
            assert file is not None
            warnings, told = _again(file, out, named, device, trusted, force)
        else:
            warnings, told = _once(file, out, named, values, device, trusted, force, given)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(told)


def _again(
    file: Path, out: Path, sources: dict[str, str], device: str | None, trusted: Sequence[str], force: bool
) -> tuple[Sequence[str], str]:
    from mergesearch.results.remake import merge_recipe

    made = merge_recipe(file, out, sources=sources, device=device, trusted=trusted, force=force)
    told = "as in the export" if made.same else "none was recorded to compare with"
    return made.warnings, f"merged to {made.folder}: weights {made.weights[:12]}…, {told}"


def _once(
    file: Path | None,
    out: Path,
    sources: dict[str, str],
    values: dict[str, Any],
    device: str | None,
    trusted: Sequence[str],
    force: bool,
    given: dict[str, Any],
) -> tuple[Sequence[str], str]:
    from mergesearch.results.coefficients import coefficient_words
    from mergesearch.results.one_shot import ask_in_study, ask_merge, merge_once
    from mergesearch.study_file import parse_study

    if file is not None:
        asked = ask_in_study(parse_study(file), values)
    else:
        asked = ask_merge(sources, settings=values, trusted=trusted, **given)

    def on_loss(source: str, loss: float) -> None:
        click.echo(f"loss {loss:>9.4f}  {source}")

    made = merge_once(asked, out, device=device, force=force, on_loss=on_loss)
    lines = [f"{g.name}: {', '.join(coefficient_words(made.recipe, g, digits=6))}" for g in made.recipe.groups]
    origin = [f"not set, but declared for one shot: {made.origin}"] if made.origin else []
    head = f"merged to {made.folder} by {made.recipe.method}; nothing was scored"
    return made.warnings, "\n".join([head, *lines, *origin])


def _pairs(option: str, form: str, entries: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise click.UsageError(f"{option} takes {form}, found {entry!r}")
        if name in found:
            raise click.UsageError(f"{option} names {name!r} twice")
        found[name] = value
    return found


def _value(text: str) -> Any:
    """A number, true or false; else the text."""
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        try:
            return float(text)  # .5, which is no JSON
        except ValueError:
            return text
    return value if isinstance(value, bool | int | float) else text
