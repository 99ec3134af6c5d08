"""The quality protocol from beginning to end: domain models, searches, the one reading of test, the table."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch

from mergesearch.errors import MergesearchError
from mergesearch.evaluation.formats.documents import document_files
from mergesearch.evaluation.loading import no_progress_bar
from mergesearch.protocols.quality.models import domain_model
from mergesearch.protocols.quality.result import collect
from mergesearch.protocols.quality.schema import Protocol, read_protocol
from mergesearch.protocols.quality.searching import plan_studies, run_searches
from mergesearch.protocols.quality.testing import candidates, read_test
from mergesearch.search.quiet import quiet_optuna

Tell = Callable[[str], None]


def run_protocol(path: Path, only: Sequence[str] = (), tell: Tell = print) -> Protocol:
    """Do what is left to do; killed or interrupted, the same call goes on.

    Args:
        path: the protocol file.
        only: names of its collections; all by default.
        tell: called with a line for every step, by several processes at once where the protocol names several.

    Raises:
        MergesearchError: any of its kinds, after the collections that go well.
    """
    protocol = read_protocol(path)
    unknown = set(only) - set(protocol.content.collections)
    if unknown:
        names = ", ".join(protocol.content.collections)
        raise MergesearchError(f"{path} has no collection {', '.join(sorted(unknown))}; it has {names}")
    document_files([protocol.folder(name) for name in protocol.content.collections])  # each is compared with the others
    wanted = [name for name in protocol.content.collections if not only or name in only]
    failures = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(protocol.content.processes, len(wanted)), mp_context=context) as pool:
        begun = [pool.submit(_attempt, path, name, tell) for name in wanted]
        try:
            failures = [failure for future in as_completed(begun) if (failure := future.result())]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()  # what they have recorded stays
            raise
    if failures:
        raise MergesearchError("\n".join(failures))
    return protocol


def _attempt(path: Path, collection: str, tell: Tell) -> str:
    """In a process of its own: one collection; what went wrong, in words, for errors do not travel well."""
    try:
        with no_progress_bar(), quiet_optuna():
            run_collection(path, collection, tell)
    except MergesearchError as error:
        return f"{collection}: {error}"
    return ""


def run_collection(path: Path, collection: str, tell: Tell = print) -> None:
    """One collection with one thread, from domain models to test scores; see `run_protocol`."""
    torch.set_num_threads(1)  # what is trained depends on it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    protocol = read_protocol(path)
    work = protocol.work / collection
    work.mkdir(parents=True, exist_ok=True)

    def told(line: str) -> None:
        tell(f"{time.strftime('%H:%M:%S')} {collection}: {line}")

    with _timed(work, "training"):
        models = {}
        for name in protocol.content.domain_models:
            models[name] = domain_model(protocol, collection, name)
            told(f"{name} is trained")
    with _timed(work, "searching"):
        planned = plan_studies(protocol, collection, models)
        run_searches(planned, told)
    with _timed(work, "testing"):
        found = candidates(planned, protocol.content.uniform)
        scores = read_test(protocol, collection, found, told)
    with _timed(work, "judging"):
        collect(protocol, collection, planned, found, scores)
    told("done")


def seconds(protocol: Protocol, collection: str) -> dict[str, float]:
    """Wall seconds of a collection by phase, over all processes that worked on it."""
    file = protocol.work / collection / "seconds.json"
    found: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


@contextmanager
def _timed(work: Path, phase: str) -> Iterator[None]:
    file = work / "seconds.json"
    started = time.perf_counter()
    try:
        yield
    finally:
        spent = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - started
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(spent), encoding="utf-8")
        draft.rename(file)
