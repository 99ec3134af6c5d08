"""Training data that a language model writes: hard negatives for pairs, and queries for documents.

Hard negatives as in Synthesize-Train-Merge (Khattab et al. 2026, section 3.1.1): the model is shown query, relevant
document and a mined negative, and writes one that is harder than that. Queries are pseudo-queries, as in InPars
(Bonifacio et al. 2022, https://arxiv.org/abs/2202.05144): what is trained or chosen on them never met a real user's
words.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergesearch.errors import MergesearchError
from mergesearch.training.documents import document_files, read_documents
from mergesearch.training.endpoint import Endpoint, complete
from mergesearch.training.pairs import column_names, lay_out, mine_bm25, read_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergesearch.training.harness import Progress

NEGATIVE = """\
You write passages that test a search engine.

Search query: {query}

A passage that answers it: {document}

A passage that does not, found by its words: {negative}

Write one more passage that does not answer the query and is harder to tell from the answer than the passage above:
from the same field, in the same style and length as the answer, with its terms, but about something else or stating
something that is of no use to whoever asked. It must read like a real passage. Reply with the passage alone.
"""
QUERY = """\
Below is a passage from a collection that people search. Write one query that somebody would type who looks for what
this passage says, without having seen it: short, in their own words. Reply with the query alone.

Passage: {document}
"""
_LONGEST = 4000  # characters of a text that are shown


@dataclass(frozen=True)
class Synthesis:
    """Prompts, and the records that their answers complete.

    Attributes:
        kind: `negatives` or `queries`.
        prompts: one for each record.
        records: lines of the file to be, without what is asked for.
    """

    kind: str
    prompts: list[str]
    records: list[dict[str, Any]]


def plan_negatives(pairs: Sequence[Path], *, split: str, most: int | None, seed: int) -> Synthesis:
    """One hard negative for one relevant document of every query, shown with a given or BM25's best negative.

    Args:
        pairs: as `pairs.read_pairs` reads them.
        split: of BEIR folders.
        most: queries at most, drawn at random.
        seed: of what is drawn.
    """
    rows: list[tuple[str, ...]] = []
    for path in pairs:
        read = read_pairs(path, split=split)
        columns = lay_out(read, mine_bm25(read, 1, seed), negatives=1, positives=1, seed=seed)
        rows += zip(*(columns[name] for name in column_names(1)), strict=True)
    rows = _some(rows, most, seed)
    return Synthesis(
        "negatives",
        [NEGATIVE.format(query=q, document=d[:_LONGEST], negative=n[:_LONGEST]) for q, d, n in rows],
        [{"query": q, "pos": [d], "neg": [n]} for q, d, n in rows],
    )


def plan_queries(documents: Sequence[Path], *, most: int | None, seed: int) -> Synthesis:
    """One query for every document.

    Args:
        documents: as `documents.read_documents` reads them.
        most: documents at most, drawn at random.
        seed: of what is drawn.
    """
    texts = _some(list(read_documents(document_files(documents))), most, seed)
    prompts = [QUERY.format(document=text[:_LONGEST]) for text in texts]
    return Synthesis("queries", prompts, [{"query": "", "pos": [text]} for text in texts])


def _some(rows: list[Any], most: int | None, seed: int) -> list[Any]:
    if most is None or len(rows) <= most:
        return rows
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), most))]  # noqa: S311


def synthesize(plan: Synthesis, endpoint: Endpoint, out: Path, progress: Progress | None = None) -> tuple[int, int]:
    """Ask for what is missing and write the file that `train-expert --pairs` reads, marked as synthetic.

    A synthetic negative stands before the one that was shown, so training with one negative takes it. Records that the
    model left empty are left out.

    Returns:
        The records written, and those left out.

    Raises:
        MergesearchError: `out` exists, the endpoint failed, or every answer was empty.
    """
    if out.exists():
        raise MergesearchError(f"{out} exists; give another --out")
    lines = []
    for record, answer in zip(plan.records, complete(endpoint, plan.prompts, progress), strict=True):
        if answer and answer not in record["pos"]:
            made = {"query": answer} if plan.kind == "queries" else {"neg": [answer, *record["neg"]]}
            lines.append({**record, **made, "synthetic": plan.kind, "by": endpoint.model})
    if not lines:
        raise MergesearchError(f"all {len(plan.records)} answers were empty; nothing was written")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.draft")
    draft.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    draft.rename(out)
    return len(lines), len(plan.records) - len(lines)
