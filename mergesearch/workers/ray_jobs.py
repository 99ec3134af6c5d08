"""Jobs of a Ray cluster, through the interface that its dashboard serves.

Authentication is Ray's own: a token in RAY_AUTH_TOKEN, or in the file that RAY_AUTH_TOKEN_PATH names.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from mergesearch.errors import WorkerError

STUDY = "mergesearch_study"
"""Our jobs carry the study's name under this key."""
FAILED = "FAILED"


@dataclass(frozen=True)
class Job:
    """A study that was submitted.

    Attributes:
        name: the job's.
        study: the study's.
        state: PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED.
        started: when, in UTC.
        message: what Ray says of the state.
    """

    name: str
    study: str
    state: str
    started: datetime | None
    message: str


class RayJobs:
    """The jobs of the cluster whose dashboard answers at `address`, such as `http://head:8265`.

    Raises:
        WorkerError: nobody answers there, the token is missing or wrong, or Ray is installed without its dashboard.
            All methods raise it, too.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        with self._friendly():
            self._client = JobSubmissionClient(address)

    def submit(self, study: str, command: str, folder: Path) -> str:
        """Run a shell command in a copy of `folder`, on the head; returns the job's name."""
        name = f"{study}-{secrets.token_hex(4)}"
        with self._friendly():
            found: str = self._client.submit_job(
                entrypoint=command,
                submission_id=name,
                runtime_env={"working_dir": str(folder)},
                metadata={STUDY: study},
            )
        return found

    def list(self) -> list[Job]:
        """The studies that were submitted, oldest first."""
        with self._friendly():
            jobs = [job for job in self._client.list_jobs() if STUDY in (job.metadata or {})]
        jobs.sort(key=lambda job: job.start_time or 0)
        return [
            Job(
                name=job.submission_id,
                study=job.metadata[STUDY],
                state=str(job.status.value),
                started=datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None,
                message=" ".join((job.message or "").split()),
            )
            for job in jobs
        ]

    def state(self, name: str) -> str:
        """Such as RUNNING."""
        with self._friendly():
            return str(self._client.get_job_status(name).value)

    def logs(self, name: str) -> str:
        """What the job has printed so far."""
        with self._friendly():
            return str(self._client.get_job_logs(name))

    def follow(self, name: str) -> Iterator[str]:
        """What the job has printed and goes on to print, in pieces, until it ends."""
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(name)
        try:
            with self._friendly():
                while True:
                    try:
                        yield loop.run_until_complete(anext(pieces))
                    except StopAsyncIteration:
                        return
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def stop(self, name: str) -> bool:
        """Ask a job to end, as Ctrl-C would; False for one that has ended."""
        with self._friendly():
            return bool(self._client.stop_job(name))

    @contextmanager
    def _friendly(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            said = " ".join(str(error).split())
            raise WorkerError(
                f"{self._address}: the cluster asks for its token; give it in RAY_AUTH_TOKEN, or in a file that "
                f"RAY_AUTH_TOKEN_PATH names, with RAY_AUTH_MODE=token. (Ray said: {said})"
            ) from None
        except ConnectionError as error:
            raise WorkerError(
                f"{self._address}: no Ray dashboard answers. Give the address of the head's dashboard, such as "
                f"http://head:8265, reached by `kubectl port-forward` or `ssh -L` where it listens on its own machine "
                f"only. (Ray said: {error})"
            ) from None
        except (ImportError, RuntimeError) as error:
            said = " ".join(str(error).split())
            if isinstance(error, ImportError) or "ray[default]" in said:
                said = 'Ray is installed without its dashboard. Run: pip install "mergesearch[cluster]"'
            raise WorkerError(f"{self._address}: {said}") from None
