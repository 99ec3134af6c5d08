"""How many tokens a trial encodes, from texts and the template's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from mergesearch.evaluation.settings import Kind, stated_prompts
from mergesearch.evaluation.template_files import read_template_files
from mergesearch.sources.config import load_config
from mergesearch.sources.locate import model_folder
from mergesearch.study import Study

_LONGEST_PAIR = 512
"""Tokens of a pair where neither study nor tokenizer says it."""
SAMPLE_TEXTS = 5000
"""Texts that are tokenised to estimate a larger collection."""


class TokenCount(NamedTuple):
    """Tokens of some texts; not `exact` when a sample was counted."""

    tokens: int
    exact: bool


def count_tokens(study: Study) -> dict[str, TokenCount]:
    """Tokens that one trial encodes, per collection: of judged queries and of documents that can be retrieved.

    Texts are tokenised as the evaluator does it, with prompts and lengths; of large corpora only a sample is. Where
    prompts are searched, it is with the first.
    """
    content = study.parsed.content
    template = content.merge.template
    if content.evaluation.rerank is not None:
        return _count_pairs(study)
    texts = _Texts(study.folders[template], content.evaluation.append_eos, template in content.trusted)
    lengths = content.evaluation.max_length
    counts = {}
    for collection, spec in zip(study.collections, study.collection_specs(), strict=True):
        judged = [
            text
            for query, text in zip(collection.query_ids, collection.query_texts, strict=True)
            if collection.qrels.get(query)
        ]
        documents = collection.doc_texts
        if collection.candidates is not None:
            wanted = {d for query in collection.qrels for d in collection.candidates.get(query, ())}
            documents = [t for d, t in zip(collection.doc_ids, documents, strict=True) if d in wanted]
        queries = texts.count(judged, "query", spec.prompts["query"], lengths.query)
        rest = texts.count(documents, "document", spec.prompts["document"], lengths.document)
        counts[collection.name] = TokenCount(
            queries.tokens + rest.tokens, queries.exact and rest.exact and not spec.choices
        )
    return counts


def pairs_of(study: Study) -> dict[str, int]:
    """Pairs that one trial scores, by collection, as if every query had all the candidates that it may have."""
    found = {}
    for collection, spec in zip(study.collections, study.collection_specs(), strict=True):
        listed, depth = collection.candidates or {}, spec.first_stage.depth
        found[collection.name] = sum(min(depth, len(listed.get(q, collection.doc_ids))) for q in collection.query_ids)
    return found


def _count_pairs(study: Study) -> dict[str, TokenCount]:
    """Tokens of a re-ranker's pairs, as if every query had all its candidates, and these the length of any document.

    Queries and documents are counted once each, on a sample; which documents are candidates is not looked up.
    """
    content = study.parsed.content
    template, lengths = content.merge.template, content.evaluation.max_length
    tokenizer = AutoTokenizer.from_pretrained(
        study.folders[template], local_files_only=True, trust_remote_code=template in content.trusted
    )
    entry = content.evaluation.rerank
    assert entry is not None
    longest = entry.max_length or min(tokenizer.model_max_length, _LONGEST_PAIR)
    counts = {}
    for collection in study.collections:
        means = []
        for texts, most in ((collection.query_texts, lengths.query), (collection.doc_texts, lengths.document)):
            sample = list(texts[:: max(1, len(texts) // SAMPLE_TEXTS)])
            ids = tokenizer(sample, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            means.append(sum(min(len(i), most or longest) for i in ids) / max(1, len(ids)))
        per_pair = min(longest, round(sum(means)) + tokenizer.num_special_tokens_to_add(pair=True))
        counts[collection.name] = TokenCount(per_pair * pairs_of(study)[collection.name], exact=False)
    return counts


class _Texts:
    """Counts tokens as the template's sentence-transformers files say, without its weights."""

    def __init__(self, folder: Path, append_eos: bool | None, trust_remote_code: bool) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(
            model_folder(folder), local_files_only=True, trust_remote_code=trust_remote_code
        )
        self._append_eos = bool(append_eos)
        self._prompts = stated_prompts(read_template_files(folder))
        file = model_folder(folder) / "sentence_bert_config.json"
        self._stated = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        config = load_config(folder, trust_remote_code=trust_remote_code)
        self._positions = getattr(config, "max_position_embeddings", None) or self._tokenizer.model_max_length
        self._lower = bool(self._stated.get("do_lower_case"))

    def count(self, texts: Sequence[str], kind: Kind, prompt: str | None, max_length: int | None) -> TokenCount:
        step = max(1, len(texts) // SAMPLE_TEXTS)
        start = (self._prompts[kind] or "") if prompt is None else prompt
        sample = [start + (t.lower() if self._lower else t) for t in texts[::step]]
        if not sample:
            return TokenCount(0, exact=True)
        encoded = self._tokenizer(
            sample,
            truncation="longest_first",
            max_length=(max_length or self._length(kind)) - self._append_eos,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        n = sum(map(len, encoded["input_ids"]))
        if self._append_eos:
            n += sum(ids[-1:] != [self._tokenizer.eos_token_id] for ids in encoded["input_ids"])
        return TokenCount(round(n * len(texts) / len(sample)), exact=step == 1)

    def _length(self, kind: Kind) -> int:
        """Tokens per text as sentence-transformers reads them from the template."""
        stated = self._stated.get(f"{kind}_length") or self._stated.get("max_seq_length")
        return int(stated or min(self._tokenizer.model_max_length, self._positions))
