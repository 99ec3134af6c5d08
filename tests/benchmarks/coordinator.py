"""What coordination costs per trial, beside plain Optuna with the same sampler on the same recorded trials.

    python -m tests.benchmarks.coordinator [--recorded 0,100,1000,5000] [--workers 8] [--rounds 12] [--block 8]

Starts a PostgreSQL server of its own (with fsync off, which favours whoever commits more). Ours is the controller's own
loop on a pool whose workers answer at once: propose, begin, submit, wait, finish, with recipe, per-query scores and
attributes. Plain Optuna is `study.ask(distributions)` and `study.tell(trial, value)` with `TPESampler` of the same
options on a copy of the same database, and records parameters and value alone. Both keep as many trials in flight as
there are workers and take turns in blocks of trials, in one process.

First table: medians over blocks per trial; the ratio is the median of the blocks' ratios, of the coordinator's wall and
CPU seconds and of the server's CPU seconds. Second: what went to the server, by libpq's trace. Third: commands.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil

from mergesearch.controller import Controller
from mergesearch.listener import Listener
from mergesearch.results.choose import choose
from mergesearch.results.status import read_status
from mergesearch.session import open_store
from mergesearch.storage import StudyStore
from mergesearch.study import Study
from tests.benchmarks.coordinator_study import AtOnce, fill, study_of, value_at, with_search
from tests.benchmarks.tables import markdown
from tests.benchmarks.traffic import Traffic, traced
from tests.postgres import PostgresServer, own_server

PLAIN, OURS = "plain Optuna", "mergesearch"


def main() -> None:
    """Measure every size in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", default="0,100,1000,5000")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--dimensions", type=int, default=8)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with own_server() as server, tempfile.TemporaryDirectory() as folder:
        study = study_of(Path(folder), dimensions=arguments.dimensions, strategy="tpe", trials=1, enqueue=[])
        sizes = [Size(server, study, int(n), arguments) for n in arguments.recorded.split(",")]
        for size in sizes:
            size.measure()
            print(f"{size.recorded} recorded: done", flush=True)
    _print(sizes, arguments)


@dataclass
class Clock:
    """Seconds of wall, this process's CPU and the server's CPU; lists hold one entry per block."""

    server: psutil.Process
    started: tuple[float, float, float] = (0.0, 0.0, 0.0)
    blocks: list[tuple[float, float, float]] = field(default_factory=list)

    def start(self) -> None:
        self.started = self._now()

    def stop(self) -> None:
        now = self._now()
        self.blocks.append((now[0] - self.started[0], now[1] - self.started[1], now[2] - self.started[2]))

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), cpu_seconds(self.server)


def cpu_seconds(server: psutil.Process) -> float:
    """CPU seconds that a server and its processes, those that have ended too, have used."""
    times = server.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in server.children():
        try:
            spent = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return float(total)


class Size:
    """A study with so many recorded trials, driven by both."""

    def __init__(self, server: PostgresServer, study: Study, recorded: int, arguments: argparse.Namespace) -> None:
        self.recorded, self._arguments = recorded, arguments
        self._study = study
        process = psutil.Process(server.pid)
        self.clocks = {PLAIN: Clock(process), OURS: Clock(process)}
        self.traffic: dict[str, Traffic] = {}
        self.commands: dict[str, float] = {}
        server.execute(f"CREATE DATABASE ours_{recorded}")
        self._url = server.url(f"ours_{recorded}")
        fill(study, self._url, recorded)
        open_store(study, self._url).close()  # an empty study is made here
        server.execute(f"CREATE DATABASE plain_{recorded} TEMPLATE ours_{recorded}")
        self._plain_url = server.url(f"plain_{recorded}").replace("postgresql:", "postgresql+psycopg:")

    def measure(self) -> None:
        """Commands first, then both in turns, then a block of each under trace."""
        if self.recorded:
            self._time_commands()
        block, rounds = self._arguments.block, self._arguments.rounds
        plain = Plain(self._plain_url, self._study, self._arguments.workers)
        ours = self.clocks[OURS]
        tracing: list[Any] = []

        def turn(answers: int) -> None:
            if answers % block:
                return
            number = answers // block
            if 0 < number <= rounds + 1:
                ours.stop()
                self._plain_block(plain)
            if number == rounds + 1:
                tracing.append(traced())
                self.traffic[OURS] = tracing[0].__enter__()
            elif number == rounds + 2:
                tracing[0].__exit__(None, None, None)
                with traced() as self.traffic[PLAIN]:
                    plain.drive(block)
            ours.start()

        trials = self.recorded + (rounds + 2) * block + self._arguments.workers
        study = with_search(self._study, strategy="tpe", trials=trials, enqueue=[])
        with open_store(study, self._url) as store:
            Controller(study, store, AtOnce(self._arguments.workers, turn), Listener()).run()
        for clock in self.clocks.values():
            del clock.blocks[0]  # caches were empty

    def _plain_block(self, plain: Plain) -> None:
        clock = self.clocks[PLAIN]
        clock.start()
        plain.drive(self._arguments.block)
        clock.stop()

    def _time_commands(self) -> None:
        study = with_search(self._study, strategy="tpe", trials=self.recorded, enqueue=[])

        def resume() -> None:
            with open_store(study, self._url) as store:
                Controller(study, store, AtOnce(1), Listener()).run()

        def reading(call: Callable[[StudyStore], object]) -> Callable[[], None]:
            def read() -> None:
                with StudyStore.open(self._url, study.name, None, exclusive=False) as store:
                    call(store)

            return read

        commands = {"run": resume, "status": reading(read_status), "best": reading(lambda s: choose(study, s))}
        for name, call in commands.items():
            started = time.perf_counter()
            call()
            self.commands[name] = time.perf_counter() - started

    def per_trial(self, who: str, kind: int) -> float:
        """Median over blocks, in milliseconds; the server's clock ticks too coarsely for that, and gives a mean."""
        each = [b[kind] for b in self.clocks[who].blocks]
        return 1e3 * (statistics.mean(each) if kind == 2 else statistics.median(each)) / self._arguments.block

    def ratio(self, kind: int) -> float:
        """Ours over plain Optuna's: the median of the blocks' ratios; of the server's CPU, the ratio of the means."""
        if kind == 2:
            return self.per_trial(OURS, 2) / self.per_trial(PLAIN, 2)
        pairs = zip(self.clocks[OURS].blocks, self.clocks[PLAIN].blocks, strict=False)
        return statistics.median(a[kind] / b[kind] for a, b in pairs)


class Plain:
    """Optuna's ask and tell, with as many trials in flight as there are workers."""

    def __init__(self, url: str, study: Study, workers: int) -> None:
        strategy: Any = study.strategy()
        self._study = optuna.load_study(
            study_name=study.name, storage=url, sampler=strategy.sampler(study.parsed.content.seed)
        )
        self._distributions = study.space.distributions()
        self._flight = [self._study.ask(self._distributions) for _ in range(workers)]

    def drive(self, trials: int) -> None:
        """End so many trials, and begin one for each."""
        for _ in range(trials):
            trial = self._flight.pop(0)
            self._study.tell(trial, value_at(trial.params) / 2)
            self._flight.append(self._study.ask(self._distributions))


def _print(sizes: list[Size], arguments: argparse.Namespace) -> None:
    load = ", ".join(f"{x:.1f}" for x in psutil.getloadavg())
    print(
        f"{arguments.dimensions} coefficients, {arguments.workers} workers, {arguments.rounds} blocks of "
        f"{arguments.block} trials each; {psutil.cpu_count()} cores, load {load}\n"
    )
    kinds = ("wall", "CPU", "server CPU")
    head = ["recorded", *(f"{k} ms: {who}" for k in kinds for who in (PLAIN, OURS)), *(f"ratio, {k}" for k in kinds)]
    rows = []
    for s in sizes:
        times = [f"{s.per_trial(who, k):.1f}" for k in range(3) for who in (PLAIN, OURS)]
        rows.append([f"{s.recorded:,}", *times, *(f"{s.ratio(k):.2f}" for k in range(3))])
    print(markdown(head, rows))
    counts = ("round_trips", "statements", "transactions", "writing")
    head = ["recorded", "", "round trips", "statements", "transactions", "of them writing"]
    each = [(s, who) for s in sizes for who in (PLAIN, OURS)]
    rows = [
        [f"{s.recorded:,}", who, *(f"{getattr(s.traffic[who], c) / arguments.block:.1f}" for c in counts)]
        for s, who in each
    ]
    print(markdown(head, rows))
    names = ("run", "status", "best")
    rows = [[f"{s.recorded:,}", *(f"{s.commands[n]:.1f}" for n in names)] for s in sizes if s.commands]
    print(markdown(["recorded", *(f"`{n}` s" for n in names)], rows))


if __name__ == "__main__":
    main()
