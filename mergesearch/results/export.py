"""Export: a merge, re-made from its recorded recipe, as a folder that other tools load.

The folder is written beside its destination under another name, read back, compared, re-scored, and only then
renamed: what stands under the wanted name is always whole and scores what was recorded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from mergesearch.errors import ExportError, MergesearchError
from mergesearch.evaluation.encoder import DTYPES, Encoder, open_encoder
from mergesearch.evaluation.loading import quiet_loading
from mergesearch.evaluation.pipeline import RetrievalEvaluator
from mergesearch.evaluation.result import TrialResult
from mergesearch.merging.resident import ResidentMerger
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import Choice, choose, scored_trials
from mergesearch.results.folder import RECIPE_FILE, check_destination, made_whole, writing
from mergesearch.results.model_card import model_card
from mergesearch.results.model_files import save_model, states_encoding, template_files
from mergesearch.results.recorded import check_unchanged
from mergesearch.storage import redact
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.versions import versions
from mergesearch.workers.evaluator import BatchProgress, EvaluatorSpec, build_retrieval, open_merger

__all__ = ["EMBEDDING_TOLERANCE", "RECIPE_FILE", "SCORE_TOLERANCE", "Exported", "check_room", "export_merge"]

SCORE_TOLERANCE = 0.0005
"""How far the re-scored dev metric may lie from the recorded one: other thread counts and devices round otherwise."""
EMBEDDING_TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""How far an embedding of `SentenceTransformer.encode` may lie from ours, as ‖a − b‖ / ‖b‖, by dtype. Both use the same
weights and modules; batches are composed differently, so sums are rounded in another order."""
OWN_FILES_BYTES = 1 << 20
"""Room for config.json, mergesearch.json and the card."""
_CHECKED_TEXTS = 4


@dataclass(frozen=True)
class Exported:
    """What was exported and how it scored, before and after."""

    folder: Path
    trial: int
    metric: str
    recorded: float
    rescored: float


def export_merge(
    study: Study,
    store: StudyStore,
    out: Path,
    *,
    trial: int | None = None,
    force: bool = False,
    progress: BatchProgress | None = None,
) -> Exported:
    """Save a trial's merge with the template's tokenizer and sentence-transformers files.

    Memory: sources and one model while it is written, then one model.

    Args:
        study: the resolved study.
        store: its records.
        out: the folder to make.
        trial: a trial's number; the chosen one by default.
        force: replace `out` when it is an earlier export, or empty.
        progress: called after every batch of the re-scoring.

    Raises:
        ExportError: the folder exists, the disk is full, or the saved files are not what was evaluated.
        NothingScoredError: no trial has a score yet.
        ResumeError: sources or settings are not those of the recorded study.
    """
    check_destination(out, force=force, needed=[*study.folders.values(), *study.adapters.values()])
    check_unchanged(study, store)
    recorded = None if trial is None else _recorded(store, trial)
    choice = choose(study, store)
    number = choice.number if trial is None else trial
    recorded = recorded or _recorded(store, number)
    recipe = store.recipe(number)
    template = study.folders[recipe.template]
    spec = study.evaluator_spec()
    torch.set_num_threads(spec.threads)
    encoder, merger = open_merger(spec)
    merger.apply(recipe)
    fingerprint = merger.fingerprint()
    del merger  # the sources are needed no more
    with made_whole(out, force=force) as partial:
        check_room(partial, _size(encoder, template))
        with writing(out), quiet_loading():
            save_model(encoder, template, partial)
        overridden = not states_encoding(encoder, template)
        del encoder
        with _unloadable_is_an_export_error():
            rescored, encoding = _check_saved(partial, spec, fingerprint, recorded, progress)
        provenance = _provenance(study, store, number, recipe, recorded, rescored, choice)
        provenance["encoding"] = {**encoding, "differs_from_template": overridden}
        provenance["weights"] = fingerprint
        with writing(out):
            (partial / "README.md").write_text(model_card(study, recipe, provenance), encoding="utf-8")
            (partial / RECIPE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    metric = study.parsed.content.evaluation.metric
    return Exported(out, number, metric, recorded.value, rescored.value)


def check_room(folder: Path, n_bytes: int) -> None:
    """Refuse an export that the disk cannot hold, before anything is written.

    Raises:
        ExportError: naming what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise ExportError(
            f"the export needs {n_bytes / 2**20:,.1f} MiB in {folder.parent}, {free / 2**20:,.1f} MiB are free"
        )


def _size(encoder: Encoder, template: Path) -> int:
    """Bytes of the folder to be written."""
    weights: int = sum(p.nbytes for p in encoder.model[0].parameters())
    copied = sum((template / f).stat().st_size for f in template_files(template, modules=True))
    return weights + copied + OWN_FILES_BYTES


def _recorded(store: StudyStore, number: int) -> TrialResult:
    """The recorded scores of a trial, which may be those of an earlier trial with the same recipe."""
    result = None
    if any(t.number == number and t.state.name == "COMPLETE" and "recipe" in t.user_attrs for t in store.trials()):
        result = store.result(number)
    if result is None:
        scored = ", ".join(str(t.number) for t in scored_trials(store)[:20]) or "none"
        raise ExportError(f"trial {number} has no score; trials with scores (see `mergesearch status`): {scored}")
    return result


def _check_saved(
    folder: Path, spec: EvaluatorSpec, fingerprint: str, recorded: TrialResult, progress: BatchProgress | None
) -> tuple[TrialResult, dict[str, Any]]:
    """Load the saved files afresh: the same weights to the bit, the recorded dev score, the same in both libraries.

    Returns:
        Dev scores of the saved files, and how they encode text.
    """
    settings = spec.evaluation
    trusted = spec.template in spec.trusted
    # Nothing but the folder says how it pools and normalises: it has to stand on its own. No file can say that an
    # end token is appended which the tokenizer leaves out.
    encoder = open_encoder(
        folder,
        dtype=settings.dtype,
        device=settings.device,
        append_eos=settings.append_eos,
        attention=settings.attention,
        trust_remote_code=trusted,
        gpus=spec.gpus,
    )
    if ResidentMerger(encoder.parameters, {}, dict.fromkeys(encoder.parameters, "")).fingerprint() != fingerprint:
        raise ExportError("the saved weights are not those of the merge. Nothing was exported; is the disk sound?")
    retrieval = build_retrieval(encoder, spec.collections, settings)
    scores = retrieval.evaluate(progress)
    if not abs(scores.value - recorded.value) <= SCORE_TOLERANCE:
        raise ExportError(
            f"the saved files score {scores.value:.4f} on the dev split, recorded is {recorded.value:.4f}: more than "
            f"{SCORE_TOLERANCE} apart. Nothing was exported; are device and libraries those of the study?"
        )
    _check_sentence_transformers(folder, encoder, retrieval, trusted)
    _check_transformers(folder, encoder, trusted)
    return scores, asdict(encoder.describe())


def _check_sentence_transformers(
    folder: Path, encoder: Encoder, retrieval: RetrievalEvaluator, trust_remote_code: bool
) -> None:
    """`SentenceTransformer` alone gives the embeddings that were scored, on a few texts of every collection."""
    dtype = encoder.settings.dtype
    with quiet_loading():
        model = SentenceTransformer(
            str(folder),
            device=str(encoder.device),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": DTYPES[dtype]},
        )
    end = model.tokenizer.eos_token if encoder.settings.append_eos else ""
    encoders = {"document": model.encode_document}
    if encoder.settings.prompts["query"] is not None:
        encoders["query"] = model.encode_query
    for prepared in retrieval.collections:
        texts = [*prepared.source.collection.query_texts[:_CHECKED_TEXTS], *prepared.source.collection.doc_texts]
        texts = [t for t in texts if t][: 2 * _CHECKED_TEXTS]
        for kind, encode in encoders.items():
            plan = encoder.plan(texts, kind)  # type: ignore[arg-type]
            ours = encoder.encode(plan)
            theirs = encode([t + end for t in texts], convert_to_tensor=True, show_progress_bar=False).to(ours)
            distance = float(((theirs - ours).norm(dim=1) / ours.norm(dim=1)).max())
            if not distance <= EMBEDDING_TOLERANCE[dtype]:
                raise ExportError(
                    f"SentenceTransformer's embeddings of {kind} texts lie {distance:.2g} from those that were scored, "
                    f"more than {EMBEDDING_TOLERANCE[dtype]:g}. Nothing was exported; please report this"
                )


def _check_transformers(folder: Path, encoder: Encoder, trust_remote_code: bool) -> None:
    """`AutoModel` loads every weight of the encoder, to the bit (and may hold more: T5 has a decoder)."""
    with quiet_loading():
        model = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            dtype=DTYPES[encoder.settings.dtype],
        )
    theirs = dict(model.named_parameters(remove_duplicate=False))
    wrong = [n for n, p in encoder.parameters.items() if n not in theirs or not torch.equal(p.cpu(), theirs[n])]
    if wrong:
        raise ExportError(f"AutoModel does not load {len(wrong)} of the saved tensors as they are, such as {wrong[0]}")


@contextmanager
def _unloadable_is_an_export_error() -> Iterator[None]:
    try:
        yield
    except ExportError:
        raise
    except (MergesearchError, OSError) as error:
        raise ExportError(f"the saved files cannot be used, so nothing was exported: {error}") from error


def _luck(number: int, choice: Choice) -> dict[str, Any]:
    """What is known of the luck in a trial's dev score; of a trial that someone named, nothing."""
    if number == choice.number:
        return {"optimism": choice.optimism, "expected": choice.expected, "verdict": choice.reason()}
    if number == choice.best_number:
        optimism = choice.best_optimism
        return {"optimism": optimism, "expected": choice.best_value - optimism, "verdict": choice.reason()}
    return {"optimism": None, "expected": None, "verdict": None}


def _provenance(
    study: Study,
    store: StudyStore,
    number: int,
    recipe: MergeRecipe,
    recorded: TrialResult,
    rescored: TrialResult,
    choice: Choice,
) -> dict[str, Any]:
    """What mergesearch.json holds; `MergeRecipe.from_dict` reads `recipe` back."""
    # Of several readings of one test split the latest is told.
    readings = {
        (r.split, r.scores.collection, r.scores.metric): r
        for r in store.test_readings()
        if r.fingerprint == recipe.fingerprint
    }
    return {
        "format": 1,
        "study": study.name,
        "study_file": redact(study.parsed.text),
        "trial": number,
        "fingerprint": recipe.fingerprint,
        "recipe": recipe.to_dict(),
        "dev": {
            "note": "selection scores: the coefficients were chosen on these queries",
            "value": recorded.value,
            "rescored": rescored.value,
            **_luck(number, choice),
            "collections": {
                c.collection: {
                    "metric": c.metric,
                    "score": c.mean,
                    "rescored": again.mean,
                    "queries": len(c.query_ids),
                    "weight": c.weight,
                }
                for c, again in zip(recorded.collections, rescored.collections, strict=True)
            },
        },
        "test": [
            {
                "split": r.split,
                "collection": r.scores.collection,
                "metric": r.scores.metric,
                "score": r.scores.mean,
                "queries": len(r.scores.query_ids),
                "at": r.at.isoformat(),
            }
            for r in readings.values()
        ],
        "versions": {"study": dict(store.record.versions), "export": versions()},
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
