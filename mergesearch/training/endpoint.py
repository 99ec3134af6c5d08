"""Completions of a language model behind any endpoint that speaks OpenAI's protocol, each paid for once.

Answers are kept in the cache by all that decides them, so a call that goes on, or comes again, asks only for the rest.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from mergesearch.errors import MergesearchError
from mergesearch.sources.cache import cache_dir
from mergesearch.training import harness

if TYPE_CHECKING:
    from openai import OpenAI

_CHARACTERS_PER_TOKEN = 4  # about, for English
_ATTEMPTS = 5


@dataclass(frozen=True)
class Endpoint:
    """Where completions are asked for, and how.

    Attributes:
        url: of the protocol's root, such as `http://localhost:8000/v1`.
        model: as the endpoint calls it.
        key_variable: environment variable that holds the API key; endpoints without keys need none.
        temperature: of sampling.
        max_tokens: of one answer.
        concurrency: requests under way at a time.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.7
    max_tokens: int = 512
    concurrency: int = 8

    @property
    def shown(self) -> str:
        """The URL for people and logs: some endpoints take passwords or keys in it."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def file(self, prompt: str) -> Path:
        """Where the answer to a prompt is kept."""
        asked = [self.url, self.model, self.temperature, self.max_tokens, prompt]
        name = harness.text_hash(json.dumps(asked))
        return cache_dir() / "completions" / name[:2] / f"{name}.json"


@dataclass(frozen=True)
class Cost:
    """What a call would ask for.

    Attributes:
        prompts: all of them.
        missing: those whose answers are not kept.
        tokens_in: of the missing ones, estimated from their characters.
        tokens_out: the most that their answers may have.
    """

    prompts: int
    missing: int
    tokens_in: int
    tokens_out: int

    def describe(self, price_in: float | None = None, price_out: float | None = None) -> str:
        """In one line; prices are per million tokens."""
        told = f"{self.missing:,} of {self.prompts:,} answers are to be asked for"
        if not self.missing:
            return told
        told += f": about {self.tokens_in:,} tokens in, at most {self.tokens_out:,} out"
        if price_in is None or price_out is None:
            return f"{told}; give --price-in and --price-out for what that costs"
        price = (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6
        return f"{told}, at most {math.ceil(100 * price) / 100:,.2f} or so in all"


def cost(endpoint: Endpoint, prompts: Sequence[str]) -> Cost:
    """What `complete` would ask the endpoint for; nothing is asked."""
    missing = [p for p in dict.fromkeys(prompts) if not endpoint.file(p).is_file()]
    # Other scripts than English's have a token for each character, or more.
    wide = sum(not c.isascii() for p in missing for c in p)
    tokens = wide + (sum(map(len, missing)) - wide) // _CHARACTERS_PER_TOKEN
    return Cost(len(prompts), len(missing), tokens, len(missing) * endpoint.max_tokens)


def complete(
    endpoint: Endpoint, prompts: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """The answers, in the order of the prompts; an answer may be empty.

    Args:
        endpoint: that is asked for what is not kept yet.
        prompts: each a user's message.
        progress: called with (answers, prompts).

    Raises:
        MergesearchError: the extra is missing, or the endpoint refused or failed five times. What was answered until
            then is kept.
    """
    missing = [p for p in dict.fromkeys(prompts) if not endpoint.file(p).is_file()]
    if missing:
        with _client(endpoint) as client:
            _ask(endpoint, client, missing, progress)
    return [json.loads(endpoint.file(p).read_text(encoding="utf-8"))["answer"] for p in prompts]


def _ask(
    endpoint: Endpoint, client: OpenAI, missing: Sequence[str], progress: Callable[[int, int], None] | None
) -> None:
    def one(prompt: str) -> None:
        answer = client.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=endpoint.temperature,
            max_tokens=endpoint.max_tokens,
        )
        text = answer.choices[0].message.content if answer.choices else None
        _keep(endpoint.file(prompt), {"model": endpoint.model, "prompt": prompt, "answer": (text or "").strip()})

    pool = ThreadPoolExecutor(endpoint.concurrency)
    under_way = {pool.submit(one, prompt) for prompt in missing}
    try:
        done = 0
        while under_way:
            finished, under_way = wait(under_way, timeout=0.2, return_when=FIRST_EXCEPTION)
            finished |= {future for future in under_way if future.done()}
            under_way -= finished
            done += len(finished)
            if progress:
                progress(done, len(missing))
            for future in finished:
                future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _client(endpoint: Endpoint) -> Iterator[OpenAI]:
    """The client, and its errors as ours; the key shows in none of them."""
    if harness.missing_modules("openai"):
        raise MergesearchError(
            'asking an endpoint needs openai, not installed here; run `pip install "mergesearch[endpoint]"`'
        )
    import openai

    key = os.environ.get(endpoint.key_variable) or "none"
    try:
        with openai.OpenAI(base_url=endpoint.url, api_key=key, max_retries=_ATTEMPTS - 1) as client:
            yield client
    except openai.OpenAIError as error:
        said = str(error).replace(key, "***") if key != "none" else str(error)
        said = said.replace(endpoint.url, endpoint.shown)
        hint = ""
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            hint = f" The key is read from the environment variable {endpoint.key_variable}."
        raise MergesearchError(
            f"the endpoint {endpoint.shown} did not answer for model {endpoint.model!r}: {said}.{hint} "
            "Answers so far are kept; the same command goes on."
        ) from None


def _keep(file: Path, content: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8", suffix=".draft") as draft:
        json.dump(content, draft, ensure_ascii=False)
    Path(draft.name).rename(file)
