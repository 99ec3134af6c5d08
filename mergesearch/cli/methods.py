"""`mergesearch methods`: the merge methods and strategies there are."""

from __future__ import annotations

from typing import Any

import click

from mergesearch.cli.common import examples, print_json, print_table


@click.command(
    "methods",
    short_help="List merge methods and strategies.",
    epilog=examples(
        "mergesearch methods", "mergesearch methods -f json", "mergesearch methods -f markdown > docs/methods.md"
    ),
)
@click.option(
    "-f",
    "--format",
    "output",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="`markdown` is the page of the docs, on merge methods alone.",
)
def command(output: str) -> None:
    """List merge methods with their coefficients, and search strategies."""
    from mergesearch.merging.registry import METHODS
    from mergesearch.merging.table import one_shot_words
    from mergesearch.search.registry import STRATEGIES

    if output == "markdown":
        from mergesearch.merging.table import methods_page

        click.echo(methods_page(), nl=False)
        return
    methods: list[dict[str, Any]] = [
        {
            "name": m.name,
            "title": m.title,
            "paper": m.paper,
            "coefficients": [*m.coefficients, *m.shorthands],
            "measured": list(m.measured),
            "base": m.needs_base,
            "one_shot": one_shot_words(m),
            "one_shot_origin": m.one_shot.origin if m.one_shot else "",
        }
        for m in METHODS.values()
    ]
    strategies: list[dict[str, Any]] = [
        {"name": s.name, "title": s.title, "options": list(s.Options.model_fields)} for s in STRATEGIES.values()
    ]
    if output == "json":
        print_json({"methods": methods, "strategies": strategies})
        return
    print_table(
        ["method", "what it is", "coefficients", "paper"],
        [
            (
                m["name"],
                f"{m['title']}, from a base" if m["base"] else m["title"],
                ", ".join([*m["coefficients"], *(f"{name} (measured)" for name in m["measured"])]),
                m["paper"],
            )
            for m in methods
        ],
    )
    click.echo()
    print_table(
        ["in one shot", "what is not set is, with n sources"],
        [(m["name"], ": ".join(filter(None, (m["one_shot"], m["one_shot_origin"])))) for m in methods],
    )
    click.echo()
    print_table(
        ["strategy", "what it is", "options"],
        [(s["name"], s["title"], ", ".join(s["options"])) for s in strategies],
    )
