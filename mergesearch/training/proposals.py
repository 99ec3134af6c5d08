"""Prompts for queries or documents that a language model proposes, from examples and from what was scored before.

As in Synthesize-Train-Merge (Khattab et al. 2026, section 3.1.2): generic prompts written by a model, or prompts that
are refined by what a retriever scored with others. Whether any is better the search finds out, on dev queries; the
examples come from other ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

from mergesearch.errors import MergesearchError
from mergesearch.training.endpoint import Endpoint, complete
from mergesearch.training.pairs import read_pairs

if TYPE_CHECKING:
    from mergesearch.training.harness import Progress

PROPOSAL = """\
A search engine turns {kinds} into vectors with a language model. A short instruction may stand before every {kind}. It
changes the vectors, and so what is found.

Queries of one collection, each with a passage that answers it:

{examples}

{scored}Write {n} instructions to stand before every {kind} of this collection. Let them differ: in what they stress
(the task, the field, who asks, the form of an answer), in wording and in length, from two words to two sentences. None
may quote the examples, and the {kind} itself is put behind by the engine. Reply with a JSON list of {n} strings, and
with nothing else.
"""
SCORED = """\
Tried before, with what was scored, the higher the better:

{lines}

Keep what those with high scores have in common, leave what those with low scores have in common, and write none of
them again.

"""
AT_A_TIME = 8
"""Prompts that one answer is asked for; each further answer sees other examples."""
EXAMPLES = 4
_LONGEST = 600  # characters of a passage that are shown
_LISTED = 30  # prompts with their scores that are shown


@dataclass(frozen=True)
class Proposals:
    """What is asked, and what is made of the answers.

    Attributes:
        prompts: for the language model.
        kind: of the texts that prompts stand before, `query` or `document`.
        first: prompts that stand first in the list, whatever is proposed.
        count: how many more at most.
        form: of a prompt, with `{}` where what is proposed stands.
    """

    prompts: list[str]
    kind: str
    first: tuple[str, ...]
    count: int
    form: str


def plan_prompts(
    pairs: Sequence[Path],
    *,
    kind: str = "query",
    split: str = "train",
    count: int = 8,
    first: Sequence[str] = ("",),
    scored: Sequence[tuple[str, float]] = (),
    form: str = "{} ",
    seed: int = 0,
) -> Proposals:
    """Ask for prompts, a few at a time.

    Args:
        pairs: where examples are drawn from, as `pairs.read_pairs` reads them.
        kind: of the texts that prompts are to stand before, `query` or `document`.
        split: of BEIR folders.
        count: prompts.
        first: see `Proposals`.
        scored: prompts that were tried, and their scores; the model is to do better.
        form: see `Proposals`.
        seed: of the examples.

    Raises:
        MergesearchError: no query has a relevant document, or `form` has no place for a prompt.
    """
    if form.count("{}") != 1:
        raise MergesearchError(f"{form!r} does not say with one {{}} where a prompt stands")
    shown = [example for path in pairs for example in _examples(path, split)]
    if not shown:
        raise MergesearchError("no query has a relevant document, so there are no examples to show")
    draw = random.Random(seed)  # noqa: S311
    lines = [f"{score:.4f}  {json.dumps(_bare(t, form), ensure_ascii=False)}" for t, score in _extremes(scored)]
    before = SCORED.format(lines="\n".join(lines)) if lines else ""
    asked = []
    for start in range(0, count, AT_A_TIME):
        drawn = draw.sample(shown, min(EXAMPLES, len(shown)))
        asked.append(
            PROPOSAL.format(
                kind=kind,
                kinds="queries and passages" if kind == "query" else "passages and queries",
                examples="\n\n".join(drawn),
                scored=before,
                n=min(AT_A_TIME, count - start),
            )
        )
    return Proposals(asked, kind, tuple(dict.fromkeys(first)), count, form)


def propose(
    plan: Proposals, endpoint: Endpoint, out: Path, progress: Progress | None = None
) -> tuple[list[str], list[str]]:
    """Ask for what is missing and write the file that `evaluation.prompts: {query: {file: …}}` reads.

    Returns:
        The prompts that stood first anyway, and those that were proposed.

    Raises:
        MergesearchError: `out` exists, the endpoint failed, or nothing new was proposed.
    """
    if out.exists():
        raise MergesearchError(f"{out} exists; give another --out")
    answers = complete(endpoint, plan.prompts, progress)
    texts = [plan.form.replace("{}", text) for answer in answers for text in read_answer(answer)]
    new = [text for text in dict.fromkeys(texts) if text not in plan.first][: plan.count]
    if not new:
        raise MergesearchError("no answer held a prompt that is new; nothing was written")
    entry = f"evaluation: {{prompts: {{{plan.kind}: {{file: {out.name}}}}}}}"
    head = f"# For a study file: `{entry}`. Sources alone are\n# scored with the first. "
    head += f"The last {len(new)} were proposed by {endpoint.model}.\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.draft")
    yaml = YAML()
    yaml.width = 10_000
    with draft.open("w", encoding="utf-8") as file:
        file.write(head)
        yaml.dump([*plan.first, *new], file)
    draft.rename(out)
    return list(plan.first), new


def read_answer(answer: str) -> list[str]:
    """The texts of an answer: those of its JSON list, or else its lines without numbers, dashes and quotes."""
    found = re.search(r"\[.*\]", answer, re.DOTALL)
    try:
        listed = json.loads(found[0]) if found else None
    except ValueError:
        listed = None
    if not isinstance(listed, list):
        listed = [re.sub(r"^\s*(?:[-*•]|\d+[.):])\s*", "", line).strip().strip('"') for line in answer.splitlines()]
        listed = [line for line in listed if not line.startswith("```")]
    return [text.strip() for text in listed if isinstance(text, str) and text.strip()]


def _examples(path: Path, split: str) -> list[str]:
    """Every query with its best judged document, as text."""
    collection = read_pairs(path, split=split).collection
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    found = []
    for query_id, query in zip(collection.query_ids, collection.query_texts, strict=True):
        relevant = [d for d, grade in collection.qrels.get(query_id, {}).items() if grade > 0]
        if relevant:
            best = max(relevant, key=lambda d: (collection.qrels[query_id][d], d))
            found.append(f"Query: {query}\nPassage: {texts[best][:_LONGEST]}")
    return found


def _bare(text: str, form: str) -> str:
    """What is proposed, of a prompt in its form."""
    start, end = form.split("{}")
    framed = text.startswith(start) and text.endswith(end) and len(text) >= len(start) + len(end)
    return text[len(start) : len(text) - len(end)] if framed else text


def _extremes(scored: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """From high to low, without the middle where they are many."""
    ranked = sorted(scored, key=lambda s: -s[1])
    return ranked if len(ranked) <= _LISTED else [*ranked[: _LISTED // 2], *ranked[-_LISTED // 2 :]]
