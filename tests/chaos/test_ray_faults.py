"""Studies on a Ray cluster that loses workers, nodes and coordinators; see `test_faults`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ray._private.authentication import authentication_token_setup as authentication
from ray.cluster_utils import Cluster

from mergesearch.workers import ray_pool
from tests.chaos import faults
from tests.chaos.episode import FEW, Episode, Played, grid, show
from tests.chaos.ray_faults import NODE, RayFaults
from tests.tiny_studies import TinyStudy

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

pytest_plugins = ["tests.postgres"]
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
    pytest.mark.skipif(not hasattr(ray_pool, "LEASE_SECONDS"), reason="workers that answer nothing are not given up"),
]


@pytest.fixture
def ray_faults() -> Iterator[RayFaults]:
    """A cluster of a head that takes no workers and two nodes for one each; strangers are kept out by a token."""
    handler, before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    authentication.enable_token_auth_by_default()
    authentication.ensure_token_if_auth_enabled()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        yield RayFaults(cluster)
    finally:
        cluster.shutdown()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_workers_and_nodes_that_are_lost(
    tiny: TinyStudy,
    tmp_path: Path,
    ray_faults: RayFaults,
    postgres_server: PostgresServer,
    total: Played,
    request: pytest.FixtureRequest,
) -> None:
    episode = Episode(postgres_server, grid(tiny, tmp_path, FEW), tmp_path, seed=2, coordinators=1, like="points")
    episode.options = {"arguments": ["--address", ray_faults.cluster.address, "--count", "2"]}
    played = episode.play([*ray_faults.all(), faults.kill_coordinator, faults.crash_database], 25)
    total.add(played)
    show(request, f"Ray workers: {played}")
