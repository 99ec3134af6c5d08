"""What the prompts of a study scored."""

from __future__ import annotations

from pathlib import Path

from mergesearch.errors import MergesearchError
from mergesearch.search.ledger import violation
from mergesearch.storage.reader import StudyReader
from mergesearch.study_file import parse_study
from mergesearch.study_prompts import prompt_dimensions


def prompt_scores(study_file: Path, store: StudyReader, kind: str) -> dict[str, float]:
    """By prompt the highest dev score of a merge behind it, a selection score; the first of the list comes first.

    Of a study whose collections choose for themselves, the list for all of them counts, or else the first one.

    Args:
        study_file: names the prompts; no model or collection is looked at.
        store: the study's records.
        kind: `query` or `document`.

    Raises:
        MergesearchError: the study searched no prompt of the kind, or no trial behind one has a score.
        StudyFileError: the study file is wrong in itself.
    """
    dimensions = prompt_dimensions(parse_study(study_file).content.evaluation)
    dimension = next((d for d in dimensions if d.name.split(".")[1] == kind), None)
    if dimension is None:
        raise MergesearchError(f"{study_file} searches no {kind} prompt: list some under `evaluation.prompts`")
    best: dict[int, float] = {}
    for trial in store.trials():
        number = trial.params.get(dimension.name)
        if trial.state.name == "COMPLETE" and trial.value is not None and number is not None and not violation(trial):
            best[round(number)] = max(trial.value, best.get(round(number), trial.value))
    if not best:
        raise MergesearchError(f"no trial of {study_file} has a score behind a {kind} prompt yet; run it first")
    return {dimension.names[number]: best[number] for number in sorted(best) if number < len(dimension.names)}
