"""What a worker asks of a cluster, and how many find room."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from mergesearch.workers.ray_cluster import Request, evidence

GIB = float(1 << 30)


@pytest.mark.parametrize(
    ("request_", "node", "fitting"),
    [
        (Request(2), {"CPU": 7.0, "memory": GIB}, 3),
        (Request(2), {"memory": GIB}, 0),
        (Request(1), {"CPU": 0.0}, 0),
        (Request(4, gpus=1), {"CPU": 64.0, "GPU": 8.0}, 8),
        (Request(16, gpus=1), {"CPU": 64.0, "GPU": 8.0}, 4),
        (Request(4, gpus=2), {"CPU": 64.0, "GPU": 7.0}, 3),
        (Request(4, gpus=1), {"CPU": 64.0}, 0),
        (Request(1, memory=3 << 30), {"CPU": 64.0, "memory": 10 * GIB}, 3),
        (Request(1, memory=3 << 30), {"CPU": 2.0, "memory": 10 * GIB}, 2),
    ],
)
def test_a_node_has_room_for_as_many_as_its_scarcest_resource(
    request_: Request, node: dict[str, float], fitting: int
) -> None:
    assert request_.fitting(node) == fitting


def test_only_what_is_needed_is_asked_for() -> None:
    assert Request(2).options == {"num_cpus": 2}
    assert Request(2, 1, 5).options == {"num_cpus": 2, "num_gpus": 1, "memory": 5}
    assert str(Request(2, 1, 3 << 29)) == "2 CPUs, 1 GPU, 1.5 GiB of memory"
    assert str(Request(1)) == "1 CPU"


def test_evidence_is_one_line_without_guesses() -> None:
    said = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n\tactor_id: 12ab\n\tpid: 7\n"
        "\tnamespace: n-1\nThe actor is dead because all references are gone.\nSome common causes include: weather"
    )
    assert evidence(RuntimeError(said)) == "pid: 7 The actor is dead because all references are gone."
    assert evidence(RuntimeError()) == "RuntimeError"


def test_evidence_of_what_failed_in_a_worker_is_the_error_and_not_its_traceback() -> None:
    traceback = "ray::RayWorker.load() (pid=7)\n" + 20 * "  File 'somewhere.py', line 1, in load\n"
    error = RayTaskError("load", traceback + "RuntimeError: no driver", RuntimeError("no\ndriver"))
    assert evidence(error) == "RuntimeError: no driver"
