"""One call that runs a study: opens its database and its workers, and drives them to the end."""

from __future__ import annotations

import logging
from dataclasses import replace

from mergesearch.controller import Controller
from mergesearch.errors import StorageError
from mergesearch.listener import Listener, Summary
from mergesearch.measuring import with_losses
from mergesearch.memory_planning import check_memory, worker_memory
from mergesearch.storage.record import StudyRecord
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study, versions
from mergesearch.study_file import storage_url
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.workers.evaluator import BatchProgress
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.pool import WorkerPool
from mergesearch.workers.residency import Residency

logger = logging.getLogger(__name__)


def study_record(study: Study) -> StudyRecord:
    """What the database keeps of a study beside its trials."""
    content = study.parsed.content
    return StudyRecord(
        name=study.name,
        score_relevant=study.score_relevant(),
        other={
            "search": content.search.model_dump(mode="json"),
            "workers": content.workers.model_dump(mode="json"),
        },
        study_file=study.parsed.text,
        file_name=study.parsed.path.name,
        versions=versions(),
        defaults=study.score_defaults(),
        metric=content.evaluation.metric,
    )


def open_pool(study: Study, progress: BatchProgress | None = None, residency: Residency | None = None) -> WorkerPool:
    """The workers that the study file asks for, with the sources loaded.

    Args:
        study: the resolved study.
        progress: called with (batches encoded, batches of the trial), by a local worker only.
        residency: where sources are kept; None for what the study file says.

    Raises:
        WorkerError: workers cannot be started.
        SourceError: a source's weights cannot be read.
    """
    workers = study.parsed.content.workers
    spec = study.evaluator_spec()
    spec = replace(spec, residency=residency or spec.residency)
    if workers.kind == "local":
        return LocalPool(spec, progress)
    from mergesearch.workers.ray_pool import RayPool  # Ray takes seconds to import

    memory = worker_memory(study) if workers.address is not None else 0  # here the whole plan was checked
    return RayPool(spec, workers.count, address=workers.address, gpus=workers.gpus, memory=memory)


def open_store(study: Study, url: str | None = None) -> StudyStore:
    """Create the recorded study, or open it to go on with it.

    Args:
        study: the resolved study.
        url: the database; None for the one that environment and study file name (see `storage_url`).

    Raises:
        ResumeError: the database holds a study of this name that differs in what scores depend on.
        StorageError: the database cannot be used, or another process is running this study.
    """
    url = storage_url(study.parsed.content, url)
    return StudyStore.open(url, study.name, study_record(study), exclusive=True)


def run_study(
    study: Study, store: StudyStore, listener: Listener | None = None, progress: BatchProgress | None = None
) -> Summary:
    """Evaluate trials until the study's budget is used; what is already recorded counts.

    A method that weighs sources by their losses has them measured first, here and not by the workers.

    Args:
        study: the resolved study.
        store: its records, from `open_store`.
        listener: told of every trial.
        progress: called with (batches encoded, batches of the trial), by a local worker only.

    Raises:
        MemoryPlanError: sources and model do not fit this machine; nothing was loaded.
        WorkerError: workers cannot be started or kept alive.
        SourceError: the loss of a source cannot be measured.
    """
    listener = listener or Listener()
    workers = study.parsed.content.workers
    residency: Residency = workers.residency
    if workers.address is None:  # elsewhere the memory is not this machine's
        plan = check_memory(study)
        residency = plan.residency
        listener.planned(plan.describe())
    else:
        listener.planned(f"sources: {residency}" + (", as each worker's memory allows" if residency == "auto" else ""))
    study = with_losses(study, store, listener.measured)
    with open_pool(study, progress, residency) as pool:
        controller = Controller(study, store, pool, listener)
        try:
            return controller.run()
        finally:
            _save_landscape(study, store, controller.screened)


def _save_landscape(study: Study, store: StudyStore, report: ScreeningReport | None) -> None:
    """Keep the newest prediction's landscape with the study. A study is not lost for want of a figure."""
    if report is None or not report.landscape.coordinates:
        return
    from mergesearch.figures import LANDSCAPE, landscape  # plotly takes a second to import

    try:
        store.save_figure(LANDSCAPE, landscape(report, study.space, study.parsed.content.evaluation.metric))
    except StorageError as error:
        logger.warning("the predicted landscape was not saved: %s", error)
