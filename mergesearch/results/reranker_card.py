"""What the card of a merged re-ranker says of its use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mergesearch.evaluation.rerankers import FAMILIES

_AUTO = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
}

_CROSS_ENCODER = """```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("path/to/this/folder", max_length={length})    # or its name on the hub
scores = model.predict([({query}, {document}), ({query}, {other})])
```"""

_TRANSFORMERS = """```python
from transformers import AutoTokenizer, {auto}

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")    # or its name on the hub
model = {auto}.from_pretrained("path/to/this/folder")
```"""


def _cross_encoder(settings: Mapping[str, Any]) -> str:
    """With the texts that stand around a query and a document."""
    query, document = settings["form"]["query"], settings["form"]["document"]
    said = {"query": (query, "{query}", "a query"), "document": (document, "{document}", "a document")}
    said["other"] = (document, "{document}", "another document")
    shown = {
        name: json.dumps(form.replace(hole, text), ensure_ascii=False) for name, (form, hole, text) in said.items()
    }
    return _CROSS_ENCODER.format(length=settings["max_length"], **shown)


def how_to_rerank(provenance: Mapping[str, Any]) -> str:
    """How to load the model, what it is given, and what its scores were summed with.

    Args:
        provenance: what mergesearch.json holds.
    """
    settings = provenance["reranking"]
    family = FAMILIES[settings["family"]]
    two_texts = "query" in settings["form"]
    auto = _AUTO[family.head] if family.head else "AutoModel"
    lines = [_cross_encoder(settings) if two_texts else _TRANSFORMERS.format(auto=auto), ""]
    lines.append(f"It scores a pair of a query and a document: {family.title}.")
    cuts = {"queries": settings["max_query_length"], "documents": settings["max_document_length"]}
    lines += [f"Before that {kind} were cut to {n} tokens." for kind, n in cuts.items() if n is not None]
    texts = {name: text for name, text in settings["form"].items() if isinstance(text, str)}
    lines += [f"Pairs: {name} {json.dumps(text, ensure_ascii=False)}." for name, text in texts.items()]
    lines.append(f"Scored in {settings['dtype']}; pairs were cut to {settings['max_length']} tokens.")
    fusion = provenance.get("fusion")
    if fusion is not None:
        stages = {f"{s['kind']}'s first {s['depth']} documents" for s in fusion["first_stage"].values()}
        share = fusion["share"]
        lines.append(
            f"The scores below are those of re-ranking {' and '.join(sorted(stages))}: {share:g} times this model's "
            f"score plus {1 - share:g} times the first stage's, both scaled to 0 … 1 per query."
        )
    return "\n".join(lines)
