"""The README.md of an exported model: what was merged, how, and what it scored."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from mergesearch.recipe import MergeRecipe
from mergesearch.sources.layout import span
from mergesearch.study import Study

_TEXT = """---
{card_data}
---

# {name}

A retrieval model merged from {sources} with the method `{method}` by
[mergesearch](https://pypi.org/project/mergesearch/). No weight was trained: the coefficients below were searched.

## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode_query(["a query"])
documents = model.encode_document(["a document"])
scores = model.similarity(queries, documents)
```

{encoding}

## Recipe

| group | covers | coefficients |
|---|---|---|
{rows}

`mergesearch.json` holds the whole recipe with the hashes of every source; its fingerprint is `{fingerprint}`.

## Scores

| split | collection | metric | score | queries |
|---|---|---|---|---|
{scores}

Scores on the dev split are selection scores: the coefficients were chosen on those queries.
{luck}
"""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(study: Study, recipe: MergeRecipe, provenance: Mapping[str, Any]) -> str:
    """The text of the card, with metadata by the hub's conventions."""
    hub_ids = [
        s.location
        for s in recipe.sources
        if _HUB_ID.fullmatch(s.location) and not (study.parsed.folder / s.location).exists()
    ]
    data = ModelCardData(
        base_model=hub_ids or None,
        base_model_relation="merge" if hub_ids else None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["merge", "mergesearch", "sentence-transformers", "retrieval"],
    )
    text = _TEXT.format(
        card_data=data.to_yaml(),
        name=study.name,
        sources=", ".join(f"`{s.location}`" for s in recipe.sources),
        method=recipe.method,
        encoding=_encoding(study, provenance["encoding"]),
        rows="\n".join(_row(g.name, span(g.places), _coefficients(g.copy_from, g.coefficients)) for g in recipe.groups),
        fingerprint=recipe.fingerprint,
        scores="\n".join(_scores(provenance)),
        luck=_luck(provenance["dev"]),
    )
    return str(ModelCard(text))


def _encoding(study: Study, encoding: Mapping[str, Any]) -> str:
    """How texts were encoded for the scores below, and what of it the user has to repeat."""
    evaluation = study.parsed.content.evaluation
    lengths = {
        "query": evaluation.max_length.query or encoding["max_length"]["query"],
        "document": evaluation.max_length.document or encoding["max_length"]["document"],
    }
    pooling = " + ".join(encoding["pooling"]) or "the model's own"
    scored = (
        f"Scored in {encoding['dtype']} with {pooling} pooling and {encoding['similarity']} similarity; queries were "
        f"cut to {lengths['query']} tokens and documents to {lengths['document']}."
    )
    lines = [scored]
    if encoding["differs_from_template"]:
        lines.append("The study set pooling or normalisation; this folder's module files say what was scored.")
    if encoding["append_eos"]:
        lines.append(
            "An end token was appended to every text, which the tokenizer leaves out: encode "
            "`text + model.tokenizer.eos_token`."
        )
    for spec in study.collection_specs():
        given = {kind: prompt for kind, prompt in spec.prompts.items() if prompt is not None}
        for kind, prompt in given.items():
            lines.append(
                f"On {spec.name} the study gave the {kind} prompt {json.dumps(prompt, ensure_ascii=False)}: pass it as "
                f"`model.encode(…, prompt=…)`, for the template's files do not hold it."
            )
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _coefficients(copy_from: str | None, coefficients: Mapping[str, Any]) -> str:
    if copy_from is not None:
        return f"copied from {copy_from}"
    parts = []
    for name, value in coefficients.items():
        if isinstance(value, Mapping):
            parts += [f"{name}[{source}] = {number:.6g}" for source, number in value.items()]
        else:
            parts.append(f"{name} = {value:.6g}")
    return ", ".join(parts)


def _luck(dev: Mapping[str, Any]) -> str:
    """What is known of the luck in the dev score."""
    if dev["optimism"] is None:
        return "The merge was named by hand: how much of its dev score is luck was not estimated."
    return (
        f"Of the dev score {dev['value']:.4f} about {dev['optimism']:.4f} is luck, so that about {dev['expected']:.4f} "
        f"is to be expected on other queries of the kind. Choice: {dev['verdict']}."
    )


def _scores(provenance: Mapping[str, Any]) -> list[str]:
    rows = [
        _row("dev", name, c["metric"], f"{c['score']:.4f}", c["queries"])
        for name, c in provenance["dev"]["collections"].items()
    ]
    tested = provenance["test"]
    return rows + [_row(r["split"], r["collection"], r["metric"], f"{r['score']:.4f}", r["queries"]) for r in tested]
