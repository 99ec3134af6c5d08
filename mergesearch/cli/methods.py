"""`mergesearch methods`: the merge methods and strategies there are."""

from __future__ import annotations

from typing import Any

import click

from mergesearch.cli.common import examples, format_option, print_json, print_table


@click.command(
    "methods",
    short_help="List merge methods and strategies.",
    epilog=examples("mergesearch methods", "mergesearch methods -f json"),
)
@format_option
def command(output: str) -> None:
    """List merge methods with their coefficients, and search strategies."""
    from mergesearch.merging.registry import METHODS
    from mergesearch.search.registry import STRATEGIES

    methods: list[dict[str, Any]] = [
        {
            "name": m.name,
            "title": m.title,
            "paper": m.paper,
            "coefficients": [*m.coefficients, *m.shorthands],
            "measured": list(m.measured),
            "base": m.needs_base,
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
        ["strategy", "what it is", "options"],
        [(s["name"], s["title"], ", ".join(s["options"])) for s in strategies],
    )
