"""The README.md of an exported model: what was merged, how, what it scored, and how to make it again.

Metadata are by the hub's conventions (https://huggingface.co/docs/hub/model-cards). Test scores are metadata, too; dev
scores, on which the merge was chosen, are told in the text alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mergesearch.evaluation.labels import PSEUDO
from mergesearch.recipe import MergeRecipe
from mergesearch.results.coefficients import coefficient_words
from mergesearch.results.licences import common, concerns
from mergesearch.results.model_files import prompt_names
from mergesearch.results.provenance import licences_of
from mergesearch.results.reranker_card import how_to_rerank
from mergesearch.sources.layout import span

_TEXT = """---
{card_data}
---

# {name}

A {kind} merged from {sources} with the method `{method}` by
[mergesearch](https://pypi.org/project/mergesearch/). No weight was trained: the coefficients below were {origin}.

## Use

{use}

## Recipe

| group | covers | coefficients |
|---|---|---|
{rows}

`mergesearch.json` holds the whole recipe with the hashes of every source; its fingerprint is `{fingerprint}`.

## Make it again

```
pip install mergesearch=={version}
mergesearch merge mergesearch.json --out merged
```

This looks for the sources, refuses any whose content is not what was merged, and ends with the same weights, SHA-256
`{weights}`. Sources that lie elsewhere now are named with `--source NAME=FOLDER`. Made with {versions}.

{mergekit}

## Licences

{licences}
{scores}"""

_USE = """```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")    # or its name on the hub
queries = model.encode_query(["a query"])
documents = model.encode_document(["a document"])
scores = model.similarity(queries, documents)
```

{encoding}"""

_SCORES = """
## Scores

| split | collection | model | metric | score | queries |
|---|---|---|---|---|---|
{rows}

Scores on the dev split are selection scores: the coefficients were chosen on those queries.{pseudo}
{luck}
"""

_UNSCORED = """
## Scores

Nothing was scored: no query says whether this merge is better than its sources.{origin}
"""

_TASK = "information-retrieval"


def model_card(provenance: Mapping[str, Any]) -> str:
    """The text of the card, with metadata by the hub's conventions.

    Args:
        provenance: what mergesearch.json holds.
    """
    recipe = MergeRecipe.from_dict(provenance["recipe"])
    dev = provenance.get("dev")
    version = provenance["versions"]["export"]
    named = ("mergesearch", "torch", "transformers", "sentence-transformers")
    text = _TEXT.format(
        card_data=_metadata(recipe, provenance).to_yaml(),
        name=_name(provenance),
        sources=", ".join(f"`{s.location}`" for s in recipe.sources),
        method=recipe.method,
        origin="searched" if dev else "given",
        kind="re-ranker" if _reranks(provenance) else "retrieval model",
        use=how_to_rerank(provenance)
        if _reranks(provenance)
        else _USE.format(encoding="\n".join([*_prompts(recipe), _encoding(provenance["encoding"], scored=bool(dev))])),
        rows="\n".join(
            _row(g.name, span(g.places), ", ".join(coefficient_words(recipe, g, digits=6))) for g in recipe.groups
        ),
        fingerprint=recipe.fingerprint,
        version=version.get("mergesearch", ""),
        weights=provenance["weights"],
        versions=", ".join(f"{name} {version[name]}" for name in named if name in version),
        mergekit=_mergekit(provenance.get("mergekit")),
        licences=_licences(provenance),
        scores=_SCORES.format(rows="\n".join(_scores(provenance)), pseudo=_pseudo(provenance), luck=_luck(dev))
        if dev
        else _UNSCORED.format(origin=_origin(provenance)),
    )
    return str(ModelCard(text))


def _reranks(provenance: Mapping[str, Any]) -> bool:
    return "reranking" in provenance


def _origin(provenance: Mapping[str, Any]) -> str:
    """Where the coefficients of a one-shot merge come from."""
    origin = provenance.get("one_shot", {}).get("origin")
    return f" What was not set by hand was merged as the method declares it for one shot: {origin}." if origin else ""


def _name(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("study") or "merged")


def _metadata(recipe: MergeRecipe, provenance: Mapping[str, Any]) -> ModelCardData:
    hub_ids = [found["hub"] for found in provenance["sources"].values() if found["hub"]]
    licence = common(licences_of(provenance))
    results = [
        EvalResult(
            task_type=_TASK,
            task_name="Information Retrieval",
            dataset_type=r.get("dataset") or r["collection"],
            dataset_name=r["collection"],
            dataset_split=r["split"],
            metric_type=r["metric"].replace("@", "_at_"),
            metric_name=r["metric"],
            metric_value=round(r["score"], 5),
        )
        for r in provenance.get("test", ())
        if not r.get("pseudo_queries")  # what the hub compares is on judged queries
    ]
    return ModelCardData(
        base_model=hub_ids or None,
        base_model_relation="merge" if hub_ids else None,
        license=licence.id if licence else None,
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        library_name="transformers" if _reranks(provenance) else "sentence-transformers",
        pipeline_tag="text-ranking" if _reranks(provenance) else "sentence-similarity",
        tags=[
            "merge",
            "mergesearch",
            "sentence-transformers",
            "reranker" if _reranks(provenance) else "retrieval",
            recipe.method,
        ],
        model_name=_name(provenance) if results else None,
        eval_results=results or None,
    )


def _prompts(recipe: MergeRecipe) -> list[str]:
    """What the folder's own files put before texts because the search picked it."""
    lines = []
    for name, text in prompt_names(recipe.prompts).items():
        kind = name.partition(".")[0]
        how = f"`encode_{name}` puts it there" if name == kind else f'pass `prompt_name="{name}"`'
        shown = json.dumps(text, ensure_ascii=False)
        lines.append(f"Before every {kind} stands {shown}, the prompt that the merge was scored with: {how}.")
    return lines


def _encoding(encoding: Mapping[str, Any], *, scored: bool) -> str:
    """How texts were encoded for the scores, and what of it the user has to repeat."""
    lines = []
    if scored:
        lengths = encoding["scored_length"]
        pooling = " + ".join(encoding["pooling"]) or "the model's own"
        lines.append(
            f"Scored in {encoding['dtype']} with {pooling} pooling and {encoding['similarity']} similarity; queries "
            f"were cut to {lengths['query']} tokens and documents to {lengths['document']}."
        )
    if encoding["differs_from_template"]:
        lines.append("The study set pooling or normalisation; this folder's module files say what was scored.")
    if encoding["append_eos"]:
        lines.append(
            "An end token was appended to every text, which the tokenizer leaves out: encode "
            "`text + model.tokenizer.eos_token`."
        )
    for name, prompts in encoding["given_prompts"].items():
        for kind, prompt in prompts.items():
            lines.append(
                f"On {name} the study gave the {kind} prompt {json.dumps(prompt, ensure_ascii=False)}: pass it as "
                f"`model.encode(…, prompt=…)`, for the template's files do not hold it."
            )
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _mergekit(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["why_not"]:
        return f"There is no mergekit configuration of this merge: {found['why_not']}."
    return (
        f"`{found['file']}` says the same merge for mergekit {found['version']}, whose weights are equal "
        f"{found['tolerance']}. It makes weights alone: take all other files from here."
    )


def _licences(provenance: Mapping[str, Any]) -> str:
    found = licences_of(provenance)
    lines = [f"- {source}: {licence.described if licence else 'not known'}" for source, licence in found.items()]
    settled = "; ".join(concerns(found))
    return "\n".join([*lines, *(["", f"{settled[0].upper()}{settled[1:]}."] if settled else [])])


def _pseudo(provenance: Mapping[str, Any]) -> str:
    scores = [*provenance["dev"]["collections"].values(), *provenance["test"]]
    if not any(c.get("pseudo_queries") for c in scores):
        return ""
    return (
        f"\nScores on {PSEUDO} say how well documents are found by words of their own or of a language model: no user "
        "asked these queries, and nobody judged them."
    )


def _luck(dev: Mapping[str, Any]) -> str:
    """What is known of the luck in the dev score, and that scores over a pool are higher."""
    pooled = ", ".join(name for name, c in dev["collections"].items() if c.get("pool"))
    scale = (
        f"On {pooled} the dev queries ranked a smaller corpus than the whole, so these scores are not to be compared "
        "with those of a test split.\n"
        if pooled
        else ""
    )
    if dev["optimism"] is None:
        return f"{scale}The merge was named by hand: how much of its dev score is luck was not estimated."
    return (
        f"{scale}Of the dev score {dev['value']:.4f} about {dev['optimism']:.4f} is luck, so that about "
        f"{dev['expected']:.4f} is to be expected on other queries of the kind. Choice: {dev['verdict']}."
    )


def _scores(provenance: Mapping[str, Any]) -> list[str]:
    rows = [
        _row("dev", name, "this merge", c["metric"], f"{c['score']:.4f}", _queries(c))
        for name, c in provenance["dev"]["collections"].items()
    ]
    for r in provenance["test"]:
        for model, score in {"this merge": r["score"], **r.get("others", {})}.items():
            rows.append(_row(r["split"], r["collection"], model, r["metric"], f"{score:.4f}", _queries(r)))
    return rows


def _queries(scores: Mapping[str, Any]) -> str:
    return f"{scores['queries']} {PSEUDO}" if scores.get("pseudo_queries") else str(scores["queries"])
