"""What a study is made of, and what is different when somebody resumes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergesearch.errors import ResumeError
from mergesearch.evaluation.labels import on_queries

PLANNED = "planned_trials"
"""Entry of `StudyRecord.other`: how many trials the study will have, null where nobody knows beforehand."""
_ABSENT = object()
_SPACE = "merge.space.dimensions"
_FOLLOWS = "merge.space.coefficients_at_"
_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"merge\.space\.dimensions\[(prompt\..+?)\]\.?", r"evaluation.prompts: \1: "),
        (r"merge\.space\.dimensions\[(.+?)\]\.?", r"merge.coefficients: \1: "),
        (r"merge\.space\.dimensions", "merge.coefficients"),
        (r"merge\.space\.coefficients_at_(low|high)\.", r"merge.coefficients, at the \1 end of every range: "),
        (r"merge\.space\.shares", "merge.coefficients, knots"),
        (r"merge\.groups\.([^.]+)\.places", r"merge.groups: layers of \1"),
        (r"merge\.order", "sources (order)"),
        (r"merge\.measured\.loss", "merge.coefficients.loss"),
        (r"merge\.measured", "merge.examples"),
        (r"evaluation\.looks\.shares", "search.racing.looks"),
        (r"evaluation\.looks", "search.racing"),
        (r"evaluation\.template_files\.", "merge.template: its file "),
    )
)
"""What entries of `score_relevant` are called in study files."""
_ORDERED = ("evaluation.collections",)
"""Mappings whose order counts: per-query scores and embeddings of trials lie in it."""


@dataclass(frozen=True)
class StudyRecord:
    """What is stored with a study when it is made, and compared when it is resumed.

    Attributes:
        name: the study's name.
        score_relevant: everything that can change a score, in plain JSON types: source, split and collection
            hashes, groups, merge method, prompts, lengths, dtype, seed.
        other: what may change from one run to the next: budget, strategy, workers.
        study_file: the resolved study file's text.
        file_name: what the user called it.
        versions: library name to version.
        defaults: entries of `score_relevant` as they stand where nothing is recorded of them: an option that is
            spelled out at its default makes no other study, nor does one that came with a later version.
        metric: what trials are scored by, the name of Optuna's objective.
        objectives: the names of several objectives, one of Optuna's directions each; empty for a single one.
    """

    name: str
    score_relevant: Mapping[str, Any]
    other: Mapping[str, Any] = field(default_factory=dict)
    study_file: str = ""
    file_name: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    metric: str = ""
    objectives: tuple[str, ...] = ()

    @property
    def on_queries(self) -> str:
        """What dev scores are on, where that is not judged queries alone; see `evaluation.labels`."""
        collections = self.score_relevant.get("evaluation", {}).get("collections", {})
        return on_queries([c.get("pseudo_queries", False) for c in collections.values()])


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: lists for tuples, strings for keys."""
    return json.loads(json.dumps(value, allow_nan=False))


def differences(stored: Any, now: Any) -> dict[str, tuple[str, str]]:
    """Every leaf that differs: dotted path to (stored, now) as text. Lists of named things go by name."""
    return dict(_differences("", plain(stored), plain(now)))


def score_differences(
    stored: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Every leaf of `score_relevant` that differs once defaults are filled in, in the words of study files."""
    found = differences(_filled(defaults, stored), _filled(defaults, now))
    named: dict[str, tuple[str, str]] = {}
    for path, pair in found.items():
        if path.startswith(_FOLLOWS) and any(other.startswith(_SPACE) for other in found):
            continue  # what coefficients are at the ends of their ranges follows from the ranges
        words = next((p.sub(words, path) for p, words in _WORDS if p.match(path)), path)
        named[words.rstrip(": ")] = pair
    return named


def check_resumable(stored: StudyRecord, now: StudyRecord, *, where: str, made: str) -> None:
    """Refuses to go on with a study when something that can change a score is different.

    Args:
        stored: what the study was made with.
        now: what is asked for.
        where: the database, as it may be printed.
        made: when the study was made.

    Raises:
        ResumeError: names the file that made the study and lists every difference.
    """
    found = score_differences(stored.score_relevant, now.score_relevant, now.defaults)
    if not found:
        return
    head = f"study {stored.name!r} in {where} was made by {stored.file_name!r} on {made}"
    if stored.file_name != now.file_name:
        head = f"the name is taken: {head}, and {now.file_name!r} describes another study"
    lines = "\n".join(f"  {path}: {before} → {after}" for path, (before, after) in found.items())
    raise ResumeError(
        f"{head}. What differs can change scores, so trials could not be compared (stored → now):\n{lines}\n"
        "Restore these values to resume it, or give the study another name."
    )


def changes(stored: StudyRecord, now: StudyRecord) -> dict[str, list[str]]:
    """What may change and did: budget, strategy, workers, versions, the file's name."""

    def loose(record: StudyRecord) -> dict[str, Any]:
        return {**record.other, "versions": dict(record.versions), "file_name": record.file_name}

    return {path: list(pair) for path, pair in differences(loose(stored), loose(now)).items()}


def _filled(defaults: Any, value: Any) -> Any:
    """The value with what is missing in its mappings taken from the defaults, at every depth."""
    if not isinstance(defaults, Mapping) or not isinstance(value, Mapping):
        return value
    missing = {key: default for key, default in defaults.items() if key not in value}
    return {**{key: _filled(defaults.get(key), inner) for key, inner in value.items()}, **missing}


def _differences(path: str, stored: Any, now: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*stored, *now]))
        if path in _ORDERED and stored.keys() == now.keys() and list(stored) != list(now):
            yield f"{path} (order)", (", ".join(stored), ", ".join(now))
        for key in keys:
            place = f"{path}.{key}" if path else key
            yield from _differences(place, stored.get(key, _ABSENT), now.get(key, _ABSENT))
    elif isinstance(stored, list) and isinstance(now, list):
        yield from _list_differences(path, stored, now)
    elif stored is _ABSENT or now is _ABSENT or stored != now or isinstance(stored, bool) != isinstance(now, bool):
        yield path, (_shown(stored), _shown(now))


def _list_differences(path: str, stored: list[Any], now: list[Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    before, after = _by_name(stored), _by_name(now)
    if sorted(before) == sorted(after) and list(before) != list(after):
        yield f"{path} (order)", (", ".join(before), ", ".join(after))
    for key in dict.fromkeys([*before, *after]):
        yield from _differences(f"{path}[{key}]", before.get(key, _ABSENT), after.get(key, _ABSENT))


def _by_name(items: list[Any]) -> dict[str, Any]:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if all(isinstance(n, str) for n in names) and len(set(names)) == len(names):
        return dict(zip(map(str, names), items, strict=True))
    return {str(i): item for i, item in enumerate(items)}


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not set)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "…"
