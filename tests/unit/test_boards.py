"""Grafana's boards show what workers emit: every metric, under the name Prometheus has it, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mergesearch.workers.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "dashboards"
BOARDS = sorted((DASHBOARDS / "boards").glob("*.json"))
LABELS_OF_HISTOGRAMS = {"le"}


def board(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def queries(path: Path) -> Iterator[tuple[str, str]]:
    """Panel and PromQL of every target."""
    for panel in board(path)["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def variables(path: Path) -> dict[str, str]:
    """PromQL selector and label of every variable of the board, by its name."""
    return {v["name"]: v["query"]["query"] for v in board(path)["templating"]["list"]}


def texts() -> list[str]:
    assert BOARDS
    return [text for path in BOARDS for text in [*dict(queries(path)).values(), *variables(path).values()]]


def test_boards_show_all_metrics_and_no_other() -> None:
    shown = {name for path in BOARDS for _, text in queries(path) for name in re.findall(r"\bray_\w+", text)}
    assert shown == {metric.exported for metric in METRICS}


def test_variables_ask_for_what_is_emitted() -> None:
    tags = {metric.exported: metric.tags for metric in METRICS}
    for path in BOARDS:
        for name, text in variables(path).items():
            asked = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", text)
            assert asked is not None, text
            assert asked[2] == name
            assert asked[2] in tags[asked[1]]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_queries_use_the_labels_that_the_metric_has(metric: Any) -> None:
    """In selectors, and in what a query of this metric alone is grouped by."""
    for text in texts():
        for selector in re.findall(rf"\b{metric.exported}\{{([^}}]*)\}}", text):
            assert set(re.findall(r"(\w+)=", selector)) <= set(metric.tags), text
        if metric.exported in text:
            grouped = {label for found in re.findall(r"by \(([^)]*)\)", text) for label in found.split(", ")}
            assert grouped <= {*metric.tags, *LABELS_OF_HISTOGRAMS}, text


def test_counters_are_shown_as_rates() -> None:
    """A counter starts anew with every worker, so its value alone says nothing."""
    for text in texts():
        for name in re.findall(r"(?<!label_values\()\bray_\w+(?:_total|_bucket)\b", text):
            assert re.search(rf"(?:rate|increase)\({name}\b", text), text


def test_panels_and_provisioning_name_the_same_data_source() -> None:
    (source,) = YAML(typ="safe").load(DASHBOARDS / "provisioning/datasources/prometheus.yaml")["datasources"]
    for path in BOARDS:
        shown = board(path)
        panels = [p for p in shown["panels"] if p["type"] != "row"]
        used = [p["datasource"] for p in panels] + [t["datasource"] for p in panels for t in p["targets"]]
        used += [v["datasource"] for v in shown["templating"]["list"]]
        assert {d["uid"] for d in used} == {source["uid"]}
        assert len({p["id"] for p in shown["panels"]}) == len(shown["panels"])
        assert all(p["description"] for p in panels)


def test_prometheus_reads_queries_and_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    # What Grafana puts in.
    values = {"$__rate_interval": "1m", "$__range": "3h", "$study": ".*", "$worker": ".*"}
    rules = []
    for path in BOARDS:
        for number, (_, text) in enumerate(queries(path)):
            for variable, value in values.items():
                text = text.replace(variable, value)
            assert "$" not in text
            rules.append({"record": f"query:number_{number}", "expr": text})
    assert rules
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "boards", "rules": rules}]}), encoding="utf-8")
    token = tmp_path / "ray_token"
    token.write_text("token", encoding="utf-8")
    text = (DASHBOARDS / "prometheus.yml").read_text(encoding="utf-8")
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(text.replace("/run/secrets/ray_token", str(token)), encoding="utf-8")
    for kind, checked in (("rules", file), ("config", configuration)):
        done = subprocess.run([promtool, "check", kind, checked], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
