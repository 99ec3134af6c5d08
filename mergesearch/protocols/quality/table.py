"""The protocol's tables, from what its collections have left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergesearch.protocols.quality.result import read_result
from mergesearch.protocols.quality.running import seconds
from mergesearch.protocols.quality.schema import RETRIEVER, Protocol
from mergesearch.results.evaluate import Table
from mergesearch.results.tested import shown_p

_SIGNS = {"better": "▲", "worse": "▼", "no difference": "=", "same": "·"}
SHARES = ("covered", "covered_narrow", "merge_advised")
GAINS = ("raw", "expected", "measured", "followed")
LEGEND = (
    "▲ better, ▼ worse, = no difference, · the same scores: against the retriever, then against the source that scores "
    "highest on test"
)


def protocol_result(protocol: Protocol) -> dict[str, Any]:
    """Everything, in plain JSON types; `unfinished` names collections without a result."""
    results = {name: read_result(protocol, name) for name in protocol.content.collections}
    return {
        "protocol": protocol.content.protocol,
        "protocol_sha256": protocol.sha256,
        "collections": {name: r for name, r in results.items() if r is not None},
        "unfinished": [name for name, r in results.items() if r is None],
        "seconds": {name: seconds(protocol, name) for name in protocol.content.collections},
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """What people read of `protocol_result`: scores, differences, choices, calibration, explanation, time."""
    done: dict[str, Any] = result["collections"]
    if not done:
        return []
    return [
        _scores(done),
        *[_differences(r) for r in done.values()],
        _choices(done),
        _carried_over(done),
        _followed(done),
        _calibration(done),
        _explanation(done),
        _seconds(result["seconds"]),
    ]


def markdown(found: Sequence[Table]) -> str:
    """The tables as markdown."""
    parts = []
    for title, headers, rows in found:
        lines = [f"| {' | '.join(map(str, cells))} |" for cells in (headers, ["---"] * len(headers), *rows)]
        parts.append(f"**{title}**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _scores(done: dict[str, Any]) -> Table:
    first = next(iter(done.values()))
    rows = []
    for i, row in enumerate(first["rows"]):
        cells = []
        for result in done.values():
            mine = result["rows"][i]
            spread = "" if mine["sd"] is None else f" ± {mine['sd']:.4f}"
            signs = "".join(_SIGNS[a["verdict"]] for a in mine["against"].values())
            cells.append(f"{mine['test']:.4f}{spread} {signs}")
        rows.append((row["row"], *cells))
    return f"{first['metric']} on test (± SD over seeds; {LEGEND})", ["", *done], rows


def _differences(result: dict[str, Any]) -> Table:
    rows = []
    for row in result["rows"]:
        cells: list[str] = []
        for against in row["against"].values():
            if against["verdict"] == "same":
                cells += ["0", "", "", "same"]
            else:
                low, high = against["interval"]
                shown = (f"{against['difference']:+.4f}", f"[{low:+.4f}, {high:+.4f}]", shown_p(against["p_holm"]))
                cells += [*shown, against["verdict"]]
        rows.append((row["row"], *cells))
    title = f"{result['collection']}: differences on {result['test_queries']} test queries"
    names = [f"− {RETRIEVER}", f"− {result['best_source']}"]
    return title, ["", *[h for name in names for h in (name, "95%", "p (Holm)", "verdict")]], rows


def _choices(done: dict[str, Any]) -> Table:
    rows = []
    for name, result in done.items():
        for row in result["rows"]:
            for made in row["chosen"]:
                if (choice := made["choice"]) is not None:
                    low, high = choice["gain_interval"]
                    gain = f"{choice['gain']:+.4f}, {choice['gain_optimism']:.4f} of it luck; [{low:+.4f}, {high:+.4f}]"
                    advice = "merge" if choice["verdict"] == "merge" else "keep the source"
                    rows.append(
                        (name, row["row"], made["seed"], advice, choice["label"], f"{choice['value']:.4f}", gain)
                    )
    headers = [
        "",
        "row",
        "seed",
        "advice",
        "chosen",
        "dev",
        "dev gain of the highest over the best source; 95% of the rest",
    ]
    return "what was chosen on dev", headers, rows


def _carried_over(done: dict[str, Any]) -> Table:
    rows = []
    for name, result in done.items():
        for told in result["carried_over"]:
            low, high = told["interval"]
            inside = "yes" if told["covered"] else "no"
            expected = f"{told['expected']:+.4f} [{low:+.4f}, {high:+.4f}]"
            cells = (f"{told['dev_gain']:+.4f}", expected, f"{told['measured']:+.4f}", inside)
            rows.append((name, told["row"], told["seed"], told["source"], *cells))
    headers = ["", "row", "seed", "over", "gain on dev", f"expected on test, {_level(done)}", "gain on test", "inside"]
    return "merges that were advised: what was expected on test, and what came of it", headers, rows


def _followed(done: dict[str, Any]) -> Table:
    places = ("sample on its pool", "sample on the corpus", "other dev queries", "test")
    rows = []
    for name, result in done.items():
        for domain, told in result["followed"].items():
            cells = [
                "" if m is None else f"{m['gain']:+.4f} ± {m['se']:.4f} ({m['queries']})" for m in map(told.get, places)
            ]
            rows.append((name, domain, *cells))
    title = "where gains on dev went: the highest merge of all searches over the best source of dev (± SE, queries)"
    return title, ["", "with", *places], rows


def _calibration(done: dict[str, Any]) -> Table:
    rows = []
    for name, result in done.items():
        for domain, c in result["calibration"].items():
            half = f"{c['queries'][0]} + {c['queries'][1]}"
            rightly = "" if c["kept_rightly"] is None else f"{c['kept_rightly']:.0%}"
            gains = [f"{c[k]:+.4f}" for k in GAINS]
            shares = [f"{c[k]:.1%}" for k in SHARES]
            rows.append((name, domain, half, *shares, rightly, *gains))
    kept = [c for result in done.values() for c in result["calibration"].values()]
    shares = [f"{np.mean([c[k] for c in kept]):.1%}" for k in SHARES]
    gains = [f"{np.mean([c[k] for c in kept]):+.4f}" for k in GAINS]
    rows.append(("mean", "", "", *shares, "", *gains))
    headers = [
        "",
        "with",
        "queries",
        f"{_level(done)} interval held",
        "without test noise",
        "merge advised",
        "source kept rightly",
        "gain seen",
        "expected",
        "measured",
        "advice followed",
    ]
    return (
        "calibration: the gain of the highest merge, chosen on one half of the dev queries, on the other",
        headers,
        rows,
    )


def _level(done: dict[str, Any]) -> str:
    """Of confidence, which is the protocol's."""
    first = next(iter(done.values()))
    return f"{next(iter(first['calibration'].values()))['level']:.0%}"


def _explanation(done: dict[str, Any]) -> Table:
    rows = []
    for name, result in done.items():
        told = result["explanation"]
        test = {row["row"]: row["test"] for row in result["rows"]}
        shift = told["vocabulary_shift_bits"]
        for domain, m in told["models"].items():
            alone = [test[f"{s} alone"] for s in (RETRIEVER, domain)]
            dev_gain = m["dev_highest"] - max(m["dev_scores"].values())
            rows.append(
                (
                    name,
                    domain,
                    f"{m['weight_distance']['all']:.4f}",
                    "" if shift is None else f"{shift:.3f}",
                    f"{told['tokens_per_word']:.2f}",
                    "" if m["dev_correlation"] is None else f"{m['dev_correlation']:.2f}",
                    result["dev_queries"],
                    f"{dev_gain:+.4f}",
                    f"{alone[1] - alone[0]:+.4f}",
                )
            )
    headers = [
        "",
        "with",
        "‖Θ_D − Θ_R‖ / ‖Θ_R‖",
        "vocabulary shift (bits)",
        "tokens per word",
        "correlation over dev queries",
        "dev queries",
        "dev gain of the highest over the best source",
        "domain − retriever on test",
    ]
    return "what may explain gains", headers, rows


def _seconds(spent: dict[str, dict[str, float]]) -> Table:
    phases = list(dict.fromkeys(p for s in spent.values() for p in s))
    rows = [(name, *[f"{s.get(p, 0):.0f}" for p in phases], f"{sum(s.values()):.0f}") for name, s in spent.items()]
    total = sum(sum(s.values()) for s in spent.values())
    return f"seconds of the processes, {total / 60:.0f} minutes in all", ["", *phases, "all"], rows
