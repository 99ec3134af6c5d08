"""The searches of one collection: a study for every row and seed, all on the same dev sample."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mergesearch.protocols.quality.remembered import Memory, RememberingWorkers
from mergesearch.protocols.quality.schema import RETRIEVER, Protocol, Search
from mergesearch.protocols.quality.text import dev_sample, write_beir
from mergesearch.resolving import resolve
from mergesearch.session import open_store, run_study
from mergesearch.sources.locate import locate
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.study_file import parse_study_text


@dataclass(frozen=True)
class Planned:
    """A study of the protocol.

    Attributes:
        row, domain, seed: whose it is: row of the table, domain model that is merged, and seed.
        study: resolved.
        url: its database.
    """

    row: str
    domain: str
    seed: int
    study: Study
    url: str

    def open(self) -> StudyStore:
        """Its records, which are made where there are none."""
        return open_store(self.study, self.url)


def plan_studies(protocol: Protocol, collection: str, models: Mapping[str, Path]) -> list[Planned]:
    """The studies in the order in which they are run; the dev sample is drawn and written first.

    Args:
        protocol: what is asked for.
        collection: which of its collections.
        models: folders of the domain models by name.

    Raises:
        StudyFileError: the protocol names what does not exist, or what does not fit together.
        CollectionError: the collection cannot be read.
    """
    content, work = protocol.content, protocol.work / collection
    work.mkdir(parents=True, exist_ok=True)
    dev = content.collections[collection].dev
    sampled = work / "dev"
    if not sampled.is_dir():
        write_beir(dev_sample(protocol.folder(collection), seed=content.seed, **dev.model_dump()), sampled)
    planned = []
    for search in content.searches:
        for seed in range(content.seed, content.seed + search.seeds):
            text = study_text(protocol, collection, search, seed, models[search.domain])
            study = resolve(parse_study_text(text, work / f"{_name(collection, search.row, seed)}.yaml"))
            planned.append(Planned(search.row, search.domain, seed, study, f"sqlite:///{work / 'studies.db'}"))
    return planned


def study_text(protocol: Protocol, collection: str, search: Search, seed: int, model: Path) -> str:
    """The study file of one search: CIKM'25's space, with embeddings and tokenizer of the retriever."""
    content = protocol.content
    entry = content.collections[collection]
    retriever = locate(content.retriever, relative_to=protocol.path.parent)
    search_entry: dict[str, Any] = {"strategy": {"name": search.strategy, **search.options}}
    if search.trials is not None:
        search_entry["trials"] = search.trials
    plain = {
        "study": _name(collection, search.row, seed),
        "seed": seed,
        "artifacts": str(protocol.work / "embeddings"),
        "sources": {RETRIEVER: str(retriever), search.domain: str(model)},
        "merge": {
            "method": "linear",
            "template": RETRIEVER,
            "groups": {"segments": content.segments},
            "coefficients": {"alpha": {"low": 0, "high": 1, "step": search.step}},
        },
        "search": search_entry,
        "evaluation": {
            "metric": content.metric,
            "dtype": content.dtype,
            "max_length": entry.max_length.model_dump(),
            "collections": [
                {
                    "name": collection,
                    "folder": str(protocol.work / collection / "dev"),
                    "split": "dev",
                    "test": {"folder": str(protocol.folder(collection))},
                }
            ],
        },
        "workers": {"threads": 1, "device": "cpu"},
    }
    out = io.StringIO()
    YAML().dump(plain, out)
    return out.getvalue()


def run_searches(planned: list[Planned], tell: Callable[[str], None] = lambda _: None) -> None:
    """Run every study to its end; what one has scored, the next ones need not encode.

    Args:
        planned: the studies of one collection.
        tell: called with a line for every study.

    Raises:
        MergesearchError: any of its kinds; the same call goes on.
    """
    memories: dict[str, Memory] = {}
    for domain in dict.fromkeys(p.domain for p in planned):
        with closing(RememberingWorkers(memories.setdefault(domain, Memory()))) as workers:
            for plan in (p for p in planned if p.domain == domain):
                with plan.open() as store:
                    memories[domain].learn(store)
                    summary = run_study(plan.study, store, workers=workers)
                    memories[domain].learn(store)
                tell(f"{plan.row}, seed {plan.seed}: {summary.describe()}")


def _name(collection: str, row: str, seed: int) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{collection} {row}").strip("-")
    return f"{words}-{seed}"
