"""A judged collection from text that every installation has: the API reference of installed libraries.

Query: the first sentence of a docstring. Document: the rest of it, without doctests, citations and the
object's name. Relevant: the document whose first sentence the query was; where several objects open with the
same sentence, all of their documents, and where several objects share the rest, the one document for each.

Splits are drawn by module, so that code written together stays together, and then made disjoint: an object of
dev that shares a query, a document or most of its wording with test is left out, and so is one of train that
does with either. Each split is a BEIR folder of its own with its own corpus, so that scoring one split never
encodes the others. For given library versions and seed the files are the same to the byte.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from mergesearch.errors import CollectionError, Problem
from mergesearch.quickstart.docstrings import Docstring, read_library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

LIBRARIES = ("networkx", "numpy", "scipy", "sklearn", "sympy")
"""Libraries that every installation with the extra `quickstart` has."""

SPLITS = ("test", "dev", "train")
"""In order of precedence: what two splits share stays in the earlier one."""

_SHARES = {"test": 0.22, "dev": 0.16, "train": 0.62}  # of the modules
_DOCUMENTS = {"test": 1000, "dev": 700, "train": 5000}  # at most
_QUERIES = {"test": 400, "dev": 300, "train": 5000}  # at most
_BODY_WORDS = (12, 100)  # shorter ones say nothing; longer ones are cut
_SUMMARY_WORDS = (4, 40)
# A sentence that opens more documents than this ("Fit the model.") does not ask for anything in particular.
_MAX_RELEVANT = 10
_NEAR_COPY = 0.5  # Jaccard similarity of word trigrams


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds; `words` counts the corpus and the queries together."""

    documents: int
    queries: int
    judgements: int
    words: int


@dataclass(frozen=True)
class Summary:
    """What was built, and from which versions; stored as `summary.json` beside the splits.

    Attributes:
        libraries: import name to installed version.
        seed: what modules were drawn with.
        splits: for each split its counts; its files lie in the folder of that name.
        left_out: objects of dev and train dropped because they resemble one of an earlier split.
        content_hash: SHA-256 of all files of all splits.
    """

    libraries: dict[str, str]
    seed: int
    splits: dict[str, SplitSummary]
    left_out: int
    content_hash: str

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """The summary of a folder that `build_api_reference` wrote."""
        plain: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return cls(**{**plain, "splits": {k: SplitSummary(**v) for k, v in plain["splits"].items()}})


@dataclass(frozen=True)
class _Entry:
    """A docstring as the collection uses it, with the keys by which equal texts are found."""

    name: str
    module: str
    summary: str
    body: str
    summary_key: str
    body_key: str

    @classmethod
    def of(cls, item: Docstring) -> _Entry:
        body = " ".join(item.body.split()[: _BODY_WORDS[1]])
        return cls(item.name, item.module, item.summary, body, _key(item.summary), _key(body))


def library_versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Installed version of each library; with the seed it determines the whole collection.

    Raises:
        CollectionError: listing every library that is not installed.
    """
    distributions = importlib.metadata.packages_distributions()
    missing = [name for name in libraries if name not in distributions]
    if missing:
        raise CollectionError(
            [Problem("not installed", f"library {name!r}") for name in missing],
            'The texts come from installed libraries; `pip install "mergesearch[quickstart]"` brings them:',
        )
    return {name: importlib.metadata.version(distributions[name][0]) for name in libraries}


def build_api_reference(
    out: Path,
    *,
    libraries: Sequence[str] = LIBRARIES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write the collection: `out/{train,dev,test}/` in BEIR layout, and `out/summary.json`.

    Args:
        out: a folder that is empty or does not exist yet.
        libraries: import names; their source files are read, nothing is imported.
        seed: changes which module falls into which split.
        progress: called with (libraries read, libraries in all).

    Raises:
        CollectionError: for libraries that are not installed, an `out` that holds something, or so little
            text that a split would be empty.
    """
    if out.exists() and any(out.iterdir()):
        raise CollectionError([Problem("the folder is not empty; give a new one", str(out))])
    versions = library_versions(libraries)
    objects: list[Docstring] = []
    for done, library in enumerate(libraries, start=1):
        with _without_garbage_collection():
            objects += read_library(library)
        if progress:
            progress(done, len(libraries))

    usable = _without_copies(_Entry.of(d) for d in objects if _is_usable(d))
    drawn = {split: [d for d in usable if _split_of(d.module, seed) == split] for split in SPLITS}
    disjoint = _without_leakage(drawn)
    empty = [Problem("no documents; give more libraries", f"split {s!r}") for s in SPLITS if not disjoint[s]]
    if empty:
        raise CollectionError(empty, f"too little text in {', '.join(libraries)}:")

    splits = {split: _write_split(out, split, disjoint[split], seed) for split in SPLITS}
    summary = Summary(
        libraries=versions,
        seed=seed,
        splits=splits,
        left_out=sum(len(drawn[s]) - len(disjoint[s]) for s in SPLITS),
        content_hash=_hash_files(out),
    )
    (out / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    return summary


def _is_usable(item: Docstring) -> bool:
    shortest, longest = _SUMMARY_WORDS
    return shortest <= len(item.summary.split()) <= longest and len(item.body.split()) >= _BODY_WORDS[0]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of nodes and no cycle; looking for cycles took a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _key(text: str) -> str:
    """Texts that differ in case, spacing or punctuation only have the same key."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _draw(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, equal in every process."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _split_of(module: str, seed: int) -> str:
    position = _draw(seed, "module", module)
    for split in SPLITS:
        if position < _SHARES[split]:
            return split
        position -= _SHARES[split]
    return SPLITS[-1]


def _without_copies(entries: Iterable[_Entry]) -> list[_Entry]:
    """In the order of names; of entries with the same name, or the same summary and body, the first remains.

    A property and its setter share a name, and so do definitions for different versions of Python.
    """
    named = {e.name: e for e in sorted(entries, key=lambda e: (e.name, e.body_key), reverse=True)}
    unique: dict[tuple[str, str], _Entry] = {}
    for name in sorted(named):
        unique.setdefault((named[name].summary_key, named[name].body_key), named[name])
    return list(unique.values())


def _without_leakage(drawn: dict[str, list[_Entry]]) -> dict[str, list[_Entry]]:
    """Each split without the entries that share a query or most of a document with an earlier split."""
    kept: dict[str, list[_Entry]] = {}
    earlier: list[_Entry] = []
    for split in SPLITS:
        summaries = {e.summary_key for e in earlier}
        near = _resembles(drawn[split], earlier)
        kept[split] = [
            e for e, is_near in zip(drawn[split], near, strict=True) if not is_near and e.summary_key not in summaries
        ]
        # With the entries that the earlier split itself gave up: they resemble a split before it.
        earlier = earlier + drawn[split]
    return kept


def _resembles(entries: list[_Entry], others: list[_Entry]) -> list[bool]:
    """For each entry, whether its body is a near copy of another's: |a ∩ b| / |a ∪ b| over word trigrams.

    The intersections of all pairs are one sparse product; I and J count entries and others, T trigrams.
    """
    if not entries or not others:
        return [False] * len(entries)
    columns: dict[tuple[str, ...], int] = {}
    ours_IT, theirs_JT = (_trigrams(side, columns) for side in (entries, others))
    ours_IT.resize(ours_IT.shape[0], len(columns))
    shared_IJ = (ours_IT @ theirs_JT.T).tocoo()
    sizes_I, sizes_J = np.diff(ours_IT.indptr), np.diff(theirs_JT.indptr)
    union = sizes_I[shared_IJ.row] + sizes_J[shared_IJ.col] - shared_IJ.data
    near_I = np.zeros(len(entries), dtype=bool)
    near_I[shared_IJ.row[shared_IJ.data >= _NEAR_COPY * union]] = True
    flags: list[bool] = near_I.tolist()
    return flags


def _trigrams(entries: list[_Entry], columns: dict[tuple[str, ...], int]) -> Any:
    """int32 [entries, trigrams]: one where the body holds the trigram; `columns` grows as needed."""
    indices: list[int] = []
    starts = [0]
    for entry in entries:
        words = entry.body_key.split()
        indices += {columns.setdefault(t, len(columns)) for t in zip(words, words[1:], words[2:], strict=False)}
        starts.append(len(indices))
    ones = np.ones(len(indices), dtype=np.int32)
    return sparse.csr_array((ones, indices, starts), shape=(len(entries), len(columns)))


def _write_split(out: Path, split: str, entries: list[_Entry], seed: int) -> SplitSummary:
    """Draw the split's documents and queries, write its BEIR folder, and count what was written."""
    documents: dict[str, _Entry] = {}  # by body key: the entry that gives the document its name
    asking: dict[str, list[_Entry]] = {}  # by summary key: the entries of one query
    for entry in sorted(entries, key=lambda e: _draw(seed, "document", e.name)):
        if entry.body_key in documents or len(documents) < _DOCUMENTS[split]:
            documents.setdefault(entry.body_key, entry)
            asking.setdefault(entry.summary_key, []).append(entry)
    asked = [group for group in asking.values() if len(group) <= _MAX_RELEVANT][: _QUERIES[split]]

    corpus = sorted((entry.name, entry.body) for entry in documents.values())
    # A query is never named like a document: BEIR's evaluation drops documents that carry the query's id.
    queries = sorted((f"q:{group[0].name}", group[0].summary) for group in asked)
    qrels = sorted({(f"q:{group[0].name}", documents[e.body_key].name, "1") for group in asked for e in group})
    (out / split / "qrels").mkdir(parents=True)
    _write(out / split / "corpus.jsonl", (_json({"_id": i, "title": "", "text": t}) for i, t in corpus))
    _write(out / split / "queries.jsonl", (_json({"_id": i, "text": t}) for i, t in queries))
    header = ("query-id", "corpus-id", "score")
    _write(out / split / "qrels" / f"{split}.tsv", map("\t".join, [header, *qrels]))
    words = sum(len(text.split()) for _, text in [*corpus, *queries])
    return SplitSummary(len(corpus), len(queries), len(qrels), words)


def _json(row: dict[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _hash_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
