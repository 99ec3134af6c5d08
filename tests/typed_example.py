"""The example of docs/python.md, so that mypy --strict reads it; it is not to be imported."""

from pathlib import Path

import mergesearch as ms

study = ms.load_study("study.yaml")
with ms.open_store(study) as store:
    summary = ms.run_study(study, store)
    choice = ms.choose(study, store)
    print(summary.describe(), choice.describe(), sep="\n")
    for title, headers, rows in ms.evaluate_study(study, store).tables():
        print(title, headers, *rows, sep="\n")
    ms.export_merge(study, store, Path("merged"))
