"""Data that a language model writes, against a local server that speaks the protocol over HTTP."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from mergesearch import load_study, open_store, run_study
from mergesearch.cli import cli
from mergesearch.errors import MergesearchError
from mergesearch.study_prompts import read_prompt_list
from mergesearch.training.endpoint import Endpoint, complete, cost
from mergesearch.training.pairs import read_pairs
from mergesearch.training.proposals import plan_prompts, propose, read_answer
from tests.tiny_studies import make_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "sk-not-to-be-seen"


class Server:
    """Chat completions; what they say follows from the prompt. `failures` answers are HTTP errors first."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.failures: list[tuple[int, str]] = []
        self.most_at_once = 0
        self.together: threading.Barrier | None = None
        self._at_once = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                    server.keys.add(self.headers["Authorization"])
                    failure = server.failures.pop(0) if server.failures else None
                    if not failure:
                        server.asked.append({"path": self.path, **body})
                if server.together is not None:
                    server.together.wait(60)
                if failure:
                    self._send(failure[0], {"error": {"message": failure[1]}})
                else:
                    prompt = body["messages"][0]["content"]
                    content = "" if "leave me empty" in prompt else f"written {len(prompt)} {hash_of(prompt)}"
                    if listed := re.search(r"JSON list of (\d+) strings", prompt):
                        texts = [f"find {hash_of(prompt)} {i}:" for i in range(int(listed[1]))]
                        content = f"Here they are:\n```json\n{json.dumps(texts)}\n```"
                    message = {"role": "assistant", "content": content}
                    choice = {"index": 0, "finish_reason": "stop", "message": message}
                    self._send(200, {"id": "1", "object": "chat.completion", "created": 0, "choices": [choice]})

            def _send(self, status: int, content: dict[str, Any]) -> None:
                raw = json.dumps(content).encode()
                with lock:
                    server._at_once -= 1
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "1")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def hash_of(text: str) -> int:
    return sum(i * ord(c) for i, c in enumerate(text, 1))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [{"query": f"query {i}", "pos": [f"answer {i} of words"], "neg": [f"other {i}"]} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def call(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["synthesize", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_answers_come_in_order_and_are_asked_for_once(server: Server, tmp_path: Path) -> None:
    endpoint = Endpoint(server.url, "tiny", concurrency=3)
    prompts = [f"prompt {i % 5}" for i in range(12)]
    assert (cost(endpoint, prompts).prompts, cost(endpoint, prompts).missing) == (12, 5)
    answers = complete(endpoint, prompts)
    assert answers == [f"written {len(p)} {hash_of(p)}" for p in prompts]
    assert len(server.asked) == 5
    assert {(a["path"], a["model"], a["temperature"], a["max_tokens"]) for a in server.asked} == {
        ("/v1/chat/completions", "tiny", 0.7, 512)
    }
    assert server.keys == {f"Bearer {KEY}"}
    assert complete(endpoint, [*prompts, "prompt 9"])[:12] == answers
    assert len(server.asked) == 6
    complete(Endpoint(server.url, "other"), prompts[:1])
    assert len(server.asked) == 7
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY in p.read_text()]


def test_so_many_requests_are_under_way_and_no_more(server: Server) -> None:
    server.together = threading.Barrier(3)  # each waits for two others
    complete(Endpoint(server.url, "tiny", concurrency=3), [f"prompt {i}" for i in range(9)])
    assert server.most_at_once == 3


def test_what_fails_for_a_while_is_asked_again(server: Server) -> None:
    server.failures = [(500, "busy"), (429, "slower"), (503, "busy")]
    assert complete(Endpoint(server.url, "tiny", concurrency=1), ["a", "b"]) == ["written 1 97", "written 1 98"]


def test_a_refusal_keeps_what_was_answered_and_shows_no_key(server: Server) -> None:
    endpoint = Endpoint(server.url, "tiny", concurrency=1)
    complete(endpoint, ["a"])
    server.failures = [(401, f"bad key {KEY}")]
    with pytest.raises(MergesearchError, match=r"bad key \*\*\*.*variable OPENAI_API_KEY.*the same command") as caught:
        complete(endpoint, ["a", "b"])
    assert KEY not in str(caught.value)
    assert cost(endpoint, ["a", "b"]).missing == 1
    server.failures = []
    assert len(complete(endpoint, ["a", "b"])) == 2


def test_a_password_in_the_url_is_not_told(server: Server) -> None:
    server.close()
    url = server.url.replace("http://", "http://user:hunter2@") + "?key=hunter3"
    with pytest.raises(MergesearchError, match=r"endpoint http://127\.0\.0\.1:\d+/v1 did not answer") as caught:
        complete(Endpoint(url, "tiny"), ["a"])
    assert "hunter" not in str(caught.value)


def test_costs_are_not_told_too_low(server: Server) -> None:
    endpoint = Endpoint(server.url, "tiny", max_tokens=1)
    assert cost(endpoint, ["english words", "図書館"]).tokens_in == 3 + 3
    assert "at most 0.01 or so" in cost(endpoint, ["a few words"]).describe(0.1, 0.1)


def test_without_a_server_the_message_says_so(server: Server) -> None:
    server.close()
    with pytest.raises(MergesearchError, match=r"did not answer for model 'tiny': Connection error"):
        complete(Endpoint(server.url, "tiny"), ["a"])


def test_negatives_are_written_before_those_that_were_shown(server: Server, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ("negatives", "--from", pairs, "--endpoint", server.url, "--llm", "tiny", "--out", out)
    told = call(*arguments, "--price-in", 1000, "--price-out", 10_000)
    assert re.search(
        r"6 of 6 answers .* about [\d,]+ tokens in, at most 3,072 out, at most 3\d\.\d\d or so in all", told
    )
    assert "add --yes" in told
    assert not server.asked
    assert not out.exists()
    assert "6 records" in call(*arguments, "--yes")
    shown = {a["messages"][0]["content"] for a in server.asked}
    read = read_pairs(out)
    texts = dict(zip(read.collection.doc_ids, read.collection.doc_texts, strict=True))
    for i, query in enumerate(read.collection.query_ids):
        synthetic, original = (texts[d] for d in read.negatives[query])
        assert original == f"other {i}"
        (prompt,) = [p for p in shown if f"query {i}\n" in p]
        assert f"answer {i} of words" in prompt
        assert original in prompt
        assert synthetic == f"written {len(prompt)} {hash_of(prompt)}"
    assert {json.loads(line)["synthetic"] for line in out.read_text().splitlines()} == {"negatives"}


def test_queries_are_written_for_documents(server: Server, tmp_path: Path) -> None:
    documents = tmp_path / "documents.txt"
    documents.write_text("".join(f"document {i}\n" for i in range(9)) + "leave me empty\n")
    out = tmp_path / "out.jsonl"
    arguments = ("queries", "--from", documents, "--endpoint", server.url, "--llm", "tiny", "--yes")
    assert "9 records, 1 left out for empty answers" in call(*arguments, "--out", out)
    assert sorted(json.loads(line)["pos"][0] for line in out.read_text().splitlines()) == [
        f"document {i}" for i in range(9)
    ]
    assert "4 records" in call(*arguments, "--most", 4, "--seed", 3, "--out", tmp_path / "some.jsonl")
    assert len(server.asked) == 10
    with pytest.raises(MergesearchError, match="exists"):
        call(*arguments, "--out", out)


def test_prompts_are_proposed_from_examples_and_listed_for_a_study(server: Server, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "prompts.yaml"
    arguments = ("prompts", "--from", pairs, "--count", 11, "--endpoint", server.url, "--llm", "tiny", "--out", out)
    told = call(*arguments, "--price-in", 1, "--price-out", 1)
    assert "2 of 2 answers are to be asked for" in told
    assert (server.asked, out.exists()) == ([], False)
    assert "11 prompts were proposed, 1 stand before them" in call(*arguments, "--yes")
    listed = read_prompt_list(out)
    asked = [a["messages"][0]["content"] for a in server.asked]
    numbers = {hash_of(p): 8 if "JSON list of 8" in p else 3 for p in asked}
    assert listed[0] == ""
    assert set(listed[1:]) == {f"find {h} {i}: " for h, n in numbers.items() for i in range(n)}
    assert all(len(re.findall(r"Query: query \d\nPassage: answer \d of words", p)) == 4 for p in asked)
    out.unlink()
    framed = ("--first", "by hand ", "--form", "Instruct: {}\\nQuery: ", "--yes")
    assert "0 of 2 answers" in call(*arguments, *framed)
    assert read_prompt_list(out) == ["by hand ", *(f"Instruct: {text.strip()}\nQuery: " for text in listed[1:])]
    with pytest.raises(MergesearchError, match="exists"):
        call(*arguments, "--yes")


def test_prompts_are_refined_by_what_a_study_scored(server: Server, pairs: Path, tmp_path: Path) -> None:
    made = make_study(tmp_path / "study").change("search", to={"strategy": "grid"})
    made.change("merge", "coefficients", to={"alpha": {"values": [0.5, 1], "tie": "groups"}})
    tried = ["", "search query ", "this is a query on health "]
    arguments = ("prompts", "--from", pairs, "--study", made.file, "--endpoint", server.url, "--llm", "tiny", "--yes")
    made.change("evaluation", "prompts", to={"query": {"values": tried}})
    study = load_study(made.file)
    with open_store(study) as store:
        run_study(study, store)
        best = {}
        for trial in store.trials():
            if not trial.params:
                continue  # the source that no point of the space gives
            text = tried[round(trial.params["prompt.query"])]
            best[text] = max(best.get(text, 0.0), trial.value or 0.0)
    with pytest.raises(MergesearchError, match="searches no document prompt"):
        call(*arguments, "--before", "document", "--out", tmp_path / "none.yaml")
    out = tmp_path / "better.yaml"
    call(*arguments, "--keep", 1, "--count", 2, "--out", out)
    (asked,) = [a["messages"][0]["content"] for a in server.asked]
    ranked = sorted(best, key=lambda text: -best[text])
    lines = [f"{best[text]:.4f}  {json.dumps(text.removesuffix(' '))}" for text in ranked]
    assert [line for line in asked.splitlines() if re.match(r"\d\.\d{4}  ", line)] == lines
    listed = read_prompt_list(out)
    assert listed[:-2] == list(dict.fromkeys(["", ranked[0]]))
    made.change("evaluation", "prompts", to={"query": {"file": str(out)}})
    assert load_study(made.file).space.by_name["prompt.query"].names == tuple(listed)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('["a", "b: "]', ["a", "b:"]),
        ('Sure!\n```json\n["a",\n "b"]\n```', ["a", "b"]),
        ('1. first one\n2) "second"\n\n- third', ["first one", "second", "third"]),
        ('[1, "a", ""]', ["a"]),
        ("", []),
    ],
)
def test_answers_are_read_as_lists_or_as_lines(answer: str, expected: list[str]) -> None:
    assert read_answer(answer) == expected


def test_what_cannot_be_asked_or_used_says_so(server: Server, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(MergesearchError, match=r"one \{\} where a prompt stands"):
        plan_prompts([pairs], form="no place")
    plan = plan_prompts([pairs], count=2)
    known = [f"find {hash_of(plan.prompts[0])} {i}: " for i in range(2)]
    with pytest.raises(MergesearchError, match="nothing was written"):
        propose(plan_prompts([pairs], count=2, first=known), Endpoint(server.url, "tiny"), tmp_path / "out.yaml")
    assert not (tmp_path / "out.yaml").exists()
