"""Notes that a study and its best trials carry in optuna-dashboard, in Markdown."""

from __future__ import annotations

import shlex
from collections import Counter
from datetime import UTC, datetime

from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import luck_in
from mergesearch.results.coefficients import coefficient_words
from mergesearch.results.view import StudyView, TrialView
from mergesearch.sources.layout import span

BEST_TRIALS = 3
"""So many of the highest trials have a note; the chosen one has one in any case."""
MOST_GROUPS = 40
"""Of a recipe."""
HASH_CHARACTERS = 12


def study_note(view: StudyView) -> str:
    """What is searched, from what and on what, what is best, and how to go on."""
    study, content = view.study, view.study.parsed.content
    size = study.space.size()
    points = "" if size is None else f", {size:,} points"
    states = Counter(t.state for t in view.trials)
    counts = ", ".join(f"{states[s]} {s}" for s in ("complete", "pruned", "running", "fail") if states[s])
    options = ", ".join(f"{k}: {v}" for k, v in content.search.strategy.options.items())
    file = study.parsed.path.name
    parts = [
        f"## {code(study.name)}",
        (
            f"A search for the coefficients of {code(content.merge.method)} merges with the highest {view.metric} on "
            f"dev queries: {len(study.space.free)} searched coefficients{points}, in {len(study.space.groups)} groups "
            f"of layers. Template: {code(content.merge.template)}."
        ),
        _best(view),
        "### Searched",
        _dimensions(view),
        "### Sources",
        _table(
            ["source", "model", "content"],
            [
                [code(n), code(s.model), code(study.content_hash(n)[:HASH_CHARACTERS])]
                for n, s in content.sources.items()
            ],
        ),
        "### Dev split",
        _table(
            ["collection", "split", "queries", "documents", "weight"],
            [
                [code(c.name), escape(c.split), f"{len(c.query_ids):,}", f"{len(c.doc_ids):,}", f"{spec.weight:g}"]
                for c, spec in zip(study.collections, study.collection_specs(), strict=True)
            ],
        ),
        "\n".join(f"- {escape(note)}" for note in study.notes()),
        "### Search",
        (
            f"Strategy {code(content.search.strategy.name)}{f' ({escape(options)})' if options else ''}; trials: "
            f"{counts or 'none yet'}; {sum(t.tokens for t in view.trials):,} tokens encoded."
        ),
        "To go on, after a stop or a crash as well, in the folder of the study file:",
        f"```\nmergesearch run {shlex.quote(file)}\n```",
        f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by mergesearch {view.record.versions.get('mergesearch', '')}.",
    ]
    return "\n\n".join(part for part in parts if part)


def trial_notes(view: StudyView) -> dict[int, str]:
    """By number, notes on the chosen trial and on the highest ones."""
    ranked = view.ranked
    notable = {t.number: t for t in ranked[:BEST_TRIALS]}
    if view.chosen is not None:
        notable[view.chosen.number] = view.chosen
    ranks = {t.number: rank for rank, t in enumerate(ranked, 1)}
    return {n: _trial_note(view, t, ranks.get(n, 0), len(ranked)) for n, t in notable.items()}


def recipe_table(recipe: MergeRecipe) -> str:
    """The groups of a recipe with what they cover and their coefficients, as a Markdown table."""
    rows = [
        [code(group.name), escape(span(group.places)), escape(words)]
        for group in recipe.groups
        for words in coefficient_words(recipe, group)
    ]
    more = f"\n\n… and {len(rows) - MOST_GROUPS} more rows" if len(rows) > MOST_GROUPS else ""
    prompts = "".join(
        f"\n\n{escape(collection)}: before every {kind} stands {code(text) or 'nothing'}"
        for collection, given in recipe.prompts.items()
        for kind, text in given.items()
    )
    return _table(["group", "covers", "coefficients"], rows[:MOST_GROUPS]) + more + prompts


def code(text: str) -> str:
    """A name as it is, whatever Markdown would make of it, also inside a table.

    But for a backslash before a bar: that would end the cell, and the rest of the name would be Markdown and HTML.
    """
    plain = " ".join(text.split()).replace("`", "'").replace("\\|", "¦").replace("|", "\\|")
    return f"`{plain}`" if plain else ""


def escape(text: str) -> str:
    """Words that hold no Markdown."""
    for sign in "\\`*_[]<>|#":
        text = text.replace(sign, "\\" + sign)
    return " ".join(text.split())


def _best(view: StudyView) -> str:
    choice, chosen = view.choice, view.chosen
    if choice is None or chosen is None or chosen.recipe is None:
        return "### Best so far\n\nNo trial has a score yet."
    lines = "\n".join(f"- {escape(line)}" for line in choice.describe().splitlines())
    fingerprint = code(chosen.recipe.fingerprint[:HASH_CHARACTERS])
    return f"### Best so far\n\n{lines}\n\nRecipe {fingerprint}:\n\n{recipe_table(chosen.recipe)}"


def _dimensions(view: StudyView) -> str:
    rows = []
    for d in view.study.space.free:
        values = d.choices()
        if values is not None and len(values) <= 12:
            shown = ", ".join(d.shown(v) for v in values)
        else:
            steps = "" if d.step is None else f" in steps of {d.step:g}"
            shown = f"{d.low:g} to {d.high:g}{steps}{' (logarithmic)' if d.log else ''}"
        rows.append([code(d.name), escape(shown)])
    more = f"\n\n… and {len(rows) - MOST_GROUPS} more" if len(rows) > MOST_GROUPS else ""
    return _table(["coefficient", "values"], rows[:MOST_GROUPS]) + more


def _trial_note(view: StudyView, trial: TrialView, rank: int, count: int) -> str:
    assert trial.value is not None
    assert trial.recipe is not None
    choice = view.choice
    assert choice is not None
    why = ["the highest dev score" if rank == 1 else f"dev score number {rank} of {count}"]
    if trial.number == choice.number:
        why.insert(0, {"merge": "the chosen merge", "source": "the chosen source alone"}.get(choice.verdict, "chosen"))
    optimism = choice.best_optimism if trial.number == choice.best_number else None
    optimism = choice.optimism if trial.number == choice.number else optimism
    against = [(f"{s} alone", t) for s, t in view.sources.items()]
    against += [("uniform average", view.uniform)] if view.uniform is not None else []
    rows = [
        [escape(name), f"{other.value:.4f}", f"{trial.value - other.value:+.4f}"]
        for name, other in against
        if other.value is not None and other.number != trial.number
    ]
    parts = [
        f"**{escape(trial.label)}**",
        f"{' and '.join(why).capitalize()}: {view.metric} {luck_in(trial.value, optimism)}.",
        _table(["against", "its dev score", "difference"], rows) if rows else "",
        f"Recipe {code(trial.recipe.fingerprint[:HASH_CHARACTERS])}:",
        recipe_table(trial.recipe),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
