"""A trial in a process whose address space ends: torch fails to allocate for real. Run by `test_out_of_memory.py`.

    python -m tests.out_of_memory STUDY.yaml ROOM_MIB

Prints one JSON object: what came of a trial with all memory, and of that and another one with `ROOM_MIB` beyond what is
held after it.
"""

from __future__ import annotations

import json
import resource
import sys
from itertools import islice
from pathlib import Path

import psutil
import torch

from mergesearch.resolving import load_study
from mergesearch.workers.evaluator import TrialEvaluator, attempt
from mergesearch.workers.pool import Outcome, Task


def main() -> None:
    # oneDNN compiles code for every shape, and what it could not compile once for want of memory it never tries again.
    torch.backends.mkldnn.set_flags(False)
    study = load_study(Path(sys.argv[1]))
    evaluator = TrialEvaluator(study.evaluator_spec())
    tasks = [Task(i, study.recipe(point)) for i, point in enumerate(islice(study.space.grid(), 2))]
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]

    def limited(room: int) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, hard))

    def told(outcome: Outcome) -> dict[str, object]:
        result, failure = outcome.result, outcome.failure
        found: dict[str, object] = {"failure": failure, "at_fault": outcome.recipe_at_fault}
        if result is not None:
            found |= {"value": result.value, "out_of_memory": result.out_of_memory, "notes": result.notes}
        return found | {"most_tokens": evaluator.model.most_tokens}

    # First, so that libraries have what they take once and for all: OpenBLAS ends a process that cannot give it that.
    ample = told(attempt(evaluator, tasks[0], "w"))
    limited(int(sys.argv[2]) << 20)
    short = [told(attempt(evaluator, task, "w")) for task in tasks]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    json.dump({"ample": ample, "short": short}, sys.stdout)


if __name__ == "__main__":
    main()
