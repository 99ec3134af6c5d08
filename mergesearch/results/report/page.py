"""From a study to its page: what the template shows, in the order in which it is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mergesearch.results.figures import FIGURES
from mergesearch.results.report.ablation import ablations
from mergesearch.results.report.answer import answer
from mergesearch.results.report.cautions import cautions, sentence
from mergesearch.results.report.costs import costs, strategies
from mergesearch.results.report.examples import Examples
from mergesearch.results.report.held_out import HeldOut, mean_score
from mergesearch.results.report.hits import Shown, shown_queries
from mergesearch.results.report.intervals import Forest
from mergesearch.results.report.marks import scale_style
from mergesearch.results.report.queries import queries
from mergesearch.results.report.recipes import parts
from mergesearch.results.report.stability import stability
from mergesearch.results.report.svg import Drawing, draw
from mergesearch.results.report.text import readable
from mergesearch.results.tested import shown_p
from mergesearch.results.view import StudyView, TrialView
from mergesearch.storage.engine import redact
from mergesearch.versions import versions

GENERATOR = "mergesearch report"
"""What a page says of who made it."""
LISTED = 5
"""Queries in each list where no number is given."""
MOST_TRIALS = 500
"""Rows of the table of all trials; the highest are kept."""
MOST_DATA = 400
"""Rows of the table of a figure's data."""
SECTIONS = {
    "measured-landscape": "landscape",
    "coefficients": "landscape",
    "wins-and-losses": "queries",
}
"""Where a figure stands; those not named tell how the search went."""


@dataclass(frozen=True)
class Figure:
    """A figure with its words."""

    name: str
    title: str
    shows: str
    drawing: Drawing
    more_data: int


def render_report(
    view: StudyView,
    tests: Sequence[HeldOut],
    *,
    examples: Examples | None = None,
    n_examples: int = LISTED,
    why: str = "",
) -> str:
    """The page as HTML.

    Args:
        view: the study.
        tests: what `held_out` says of it.
        examples: rankings before and after; None shows queries without documents.
        n_examples: queries in each of the lists.
        why: why there are no rankings, a sentence.
    """
    candidates = stability(view)
    before = None if examples is None else examples.before
    found = queries(view, before)
    figures: dict[str, list[Figure]] = {"search": [], "landscape": [], "queries": []}
    for registered in FIGURES.values():
        plot = registered.draw(view)
        if plot is not None:
            drawing = draw(plot, registered.name, registered.title)
            more = max(0, len(drawing.rows) - MOST_DATA)
            figure = Figure(registered.name, registered.title, registered.shows, drawing, more)
            figures[SECTIONS.get(registered.name, "search")].append(figure)
    lists: Mapping[str, Sequence[Shown]] = {}
    if found is not None:
        n = n_examples or LISTED
        picked = {"won": found.most_won(n), "lost": found.most_lost(n), "hardest": found.hardest(n)}
        lists = {name: shown_queries(view.study.collections, rows, examples) for name, rows in picked.items()}
    return page(
        "report.html.j2",
        view=view,
        study=view.study,
        name=view.study.name,
        content=view.study.parsed.content,
        answer=answer(view, tests),
        cautions=cautions(view, tests, candidates),
        tests=[(t, Forest.of([x.comparison for x in t.tests])) for t in tests],
        test_mean=_test_mean(tests),
        kept=None if view.choice is None or view.choice.verdict != "source" else view.choice.label,
        dev=_dev(view),
        parts=parts(view.study, view.chosen.recipe) if view.chosen is not None and view.chosen.recipe else (),
        strategies=strategies(view),
        costs=costs(view),
        ablations=ablations(view),
        candidates=candidates[:8],
        other_candidates=candidates[8:],
        importances=view.importances,
        queries=found,
        lists=lists,
        rankings=examples is not None,
        why=why,
        figures=figures,
        trials=_trials(view),
        changes=_changes(view),
        study_file=redact(view.study.parsed.text),
        recipe=json.dumps(view.chosen.recipe.to_dict(), indent=2) if view.chosen and view.chosen.recipe else "",
        versions=dict(view.record.versions),
        versions_now=versions(),
        most_data=MOST_DATA,
    )


def page(template: str, **content: Any) -> str:
    """A template of this package, filled in."""
    made = datetime.now(UTC)
    return _environment().get_template(template).render(generator=GENERATOR, made=made, style=_style(), **content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mergesearch.results", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        text=readable,
        score=lambda v: "–" if v is None else f"{v:.4f}",
        change=lambda v: "–" if v is None else f"{v:+.4f}".replace("-", "−"),
        p=shown_p,
        share=lambda v: "<1%" if 0 < v < 0.01 else f"{v:.0%}",
        count=lambda v: f"{v:,}",
        many=_many,
        seconds=_seconds,
        at=lambda v: v.strftime("%Y-%m-%d %H:%M"),
        sentence=sentence,
    )
    return environment


@cache
def _style() -> Markup:
    written = files("mergesearch.results.report").joinpath("report.css").read_text(encoding="utf-8")
    return Markup(written + scale_style())  # noqa: S704


def _many(value: float) -> str:
    """A large number in words."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def _seconds(value: float | timedelta) -> str:
    """A length of time in its two largest units."""
    total = value.total_seconds() if isinstance(value, timedelta) else value
    if total < 60:
        return f"{total:.3g} s"
    minutes, seconds = divmod(round(total), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _test_mean(tests: Sequence[HeldOut]) -> tuple[str, Any] | None:
    """Split and weighted mean over its collections of the chosen merge."""
    if not tests:
        return None
    split = tests[0].split
    return split, mean_score([t.scores for t in tests if t.split == split])


def _dev(view: StudyView) -> list[tuple[str, TrialView]]:
    """What the dev queries say of sources, average, highest and chosen merge."""
    rows = [(f"{name} alone" if t.label.endswith("alone") else t.label, t) for name, t in view.sources.items()]
    if view.uniform is not None:
        rows.append(("uniform average", view.uniform))
    for name, trial in (("highest", view.highest), ("chosen", view.chosen)):
        if trial is not None and (name == "chosen" or trial is not view.chosen):
            rows.append((name, trial))
    return rows


def _trials(view: StudyView) -> tuple[list[TrialView], int]:
    """The trials of the table, and how many more there are."""
    kept = sorted(view.trials, key=lambda t: (t.value is None, -(t.value or 0.0), t.number))[:MOST_TRIALS]
    return sorted(kept, key=lambda t: t.number), len(view.trials) - len(kept)


def _changes(view: StudyView) -> list[tuple[datetime, str, list[tuple[str, str, str]]]]:
    """What happened to the study: when, what, and each (setting, before, after)."""
    return [
        (at, event, [(path, str(pair[0]), str(pair[1])) for path, pair in detail.get("changed", {}).items()])
        for at, event, detail in view.history
    ]
