"""Is the study at hand the one whose trials are recorded?"""

from __future__ import annotations

from mergesearch.errors import ResumeError
from mergesearch.storage.engine import redact_urls
from mergesearch.storage.record import score_differences
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study


def check_unchanged(study: Study, store: StudyStore) -> None:
    """Refuse to score or export recorded merges with other sources, collections or settings than they were made with.

    Raises:
        ResumeError: naming every difference that could change a score.
    """
    now = redact_urls(study.score_relevant())
    found = score_differences(store.record.score_relevant, now, study.score_defaults())
    if found:
        lines = "\n".join(f"  {path}: {before} → {after}" for path, (before, after) in found.items())
        raise ResumeError(
            f"{study.parsed.path.name} is not as it was when study {study.name!r} was recorded "
            f"(recorded → now):\n{lines}\nRestore these values, or run the study anew under another name."
        )
