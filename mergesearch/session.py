"""One call that runs a study: opens its database and its workers, and drives them to the end."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from mergesearch import starting
from mergesearch.controller import Controller
from mergesearch.errors import WorkerError
from mergesearch.listener import Listener, Listeners, Summary
from mergesearch.measuring import with_losses
from mergesearch.memory_planning import check_memory, worker_memory
from mergesearch.results.keeper import Keeper
from mergesearch.storage.record import PLANNED, StudyRecord
from mergesearch.storage.secrets import passwords_kept_from_children, refuse_visible_password
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.study_file import storage_url
from mergesearch.versions import versions
from mergesearch.workers.evaluator_spec import BatchProgress
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.pool import WorkerPool
from mergesearch.workers.residency import Residency


def study_record(study: Study) -> StudyRecord:
    """What the database keeps of a study beside its trials."""
    content = study.parsed.content
    return StudyRecord(
        name=study.name,
        score_relevant=study.score_relevant(),
        other={
            "search": content.search.model_dump(mode="json"),
            "workers": content.workers.model_dump(mode="json"),
            PLANNED: study.planned_trials,
        },
        study_file=study.parsed.text,
        file_name=study.parsed.path.name,
        versions=versions(),
        defaults=study.score_defaults(),
        metric=study.metric,
        objectives=study.objectives.names if study.objectives.several else (),
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
    with passwords_kept_from_children():
        return RayPool(
            spec,
            workers.count,
            address=workers.address,
            gpus=workers.gpus,
            memory=memory,
            any_device=workers.device == "auto",
            at_once=workers.address is not None,  # nodes may be long in coming, and the run is to hear what is wanted
        )


class Workers:
    """Workers that outlive a study: the next one is served by them if its sources, its model and its pool are the same.

    What was loaded then stays where it is, and no score is any different.
    """

    def __init__(self) -> None:
        self._pool: WorkerPool | None = None
        self._fit: object = None
        self._residency: Residency = "auto"

    def make_room(self, study: Study) -> bool:
        """Whether a study can be served by what is loaded; what cannot is unloaded."""
        if self._pool is not None and self._fit != _fit(study):
            self.close()
        return self._pool is not None

    def serve(self, study: Study, progress: BatchProgress | None = None, residency: Residency = "auto") -> WorkerPool:
        """The pool that is there, where it fits (see `make_room`), or a new one (see `open_pool`)."""
        if not self.make_room(study):
            self._pool = open_pool(study, progress, residency)
            self._fit, self._residency = _fit(study), residency
        else:
            assert self._pool is not None
            try:
                self._pool.adapt(replace(study.evaluator_spec(), residency=self._residency), progress)
            except BaseException:
                self.close()
                raise
        return self._pool

    def close(self) -> None:
        """Unload everything; harmless when called again."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def _fit(study: Study) -> object:
    """Studies that are equal in this can have the same workers."""
    workers = study.parsed.content.workers
    return study.evaluator_spec().resident, workers.model_dump(exclude={"prefix_cache"})


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
    study: Study,
    store: StudyStore,
    listener: Listener | None = None,
    progress: BatchProgress | None = None,
    workers: Workers | None = None,
) -> Summary:
    """Evaluate trials until the study's budget is used; what is already recorded counts.

    A method that weighs sources by their losses has them measured first, here and not by the workers. What comes over
    from another study (`search.start_from`) is recorded before any trial is begun.

    Args:
        study: the resolved study.
        store: its records, from `open_store`.
        listener: told of every trial.
        progress: called with (batches encoded, batches of the trial), by a local worker only.
        workers: what earlier studies were run with, and where these workers are left for the next one; None opens
            workers for this study and closes them.

    Raises:
        MemoryPlanError: sources and model do not fit this machine; nothing was loaded.
        WorkerError: workers cannot be started or kept alive, or Ray would learn a password.
        SourceError: the loss of a source cannot be measured.
        StudyFileError: the study that this one starts from scored other things.
    """
    if workers is None:
        with closing(Workers()) as own:
            return run_study(study, store, listener, progress, own)
    listener = listener or Listener()
    entry = study.parsed.content.workers
    if entry.kind == "ray":
        refuse_visible_password()
    residency: Residency = entry.residency
    loaded = workers.make_room(study)
    if loaded:
        listener.planned("sources: where they are, the model too")
    elif entry.address is None:  # elsewhere the memory is not this machine's
        plan = check_memory(study)
        residency = plan.residency
        listener.planned(plan.describe())
    else:
        listener.planned(f"sources: {residency}" + (", as each worker's memory allows" if residency == "auto" else ""))
    with starting.opened(study, store) as other:
        if other is not None:
            starting.bring_losses(study, store, other)
        study = with_losses(study, store, listener.measured)
        if other is not None:
            listener.started_from(starting.bring(study, store, other).describe())
    study = starting.with_inherited(study, store)
    if entry.kind == "ray" and not loaded:
        listener.planned("workers: Ray starts them, and they load the sources")
    keeper = Keeper(study, store)
    controller = Controller(study, store, workers.serve(study, progress, residency), Listeners(listener, keeper))
    with keeper:
        try:
            return controller.run()
        except WorkerError:
            workers.close()  # there may be none left, which would serve no other study
            raise
