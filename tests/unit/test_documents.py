"""Unlabelled documents: every format that is read, and token ids on disk in place of text in memory."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mergesearch.errors import CollectionError
from mergesearch.training.documents import TokenStore, document_files, read_documents, write_tokens
from mergesearch.training.objectives import IGNORED, Collate, Examples
from tests.tiny_models import WORDS, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXTS = [f"{a} {b} graph model" * (1 + i % 3) for i, (a, b) in enumerate(zip(WORDS[:40], WORDS[10:50], strict=True))]


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    write_tokens(iter(TEXTS), make_tokenizer("bert"), tmp_path / "tokens", max_length=12, shortest=3)
    return TokenStore.open(tmp_path / "tokens")


def test_every_format_is_read(tmp_path: Path) -> None:
    beir = tmp_path / "beir"
    write(
        beir / "corpus.jsonl", json.dumps({"_id": "1", "title": "Heart", "text": "and diet"}), '{"text": "", "_id": 2}'
    )
    write(beir / "queries.jsonl", '{"_id": "q", "text": "no document"}')
    mixed = tmp_path / "mixed"
    write(mixed / "a.jsonl", '{"contents": "of pyserini"}')
    write(mixed / "b.tsv", "0\tof MS MARCO", "1\tthe second")
    write(mixed / "c.tsv", "id\ttext\ttitle", "7\tbody\thead")
    write(mixed / "inner" / "d.txt", "first line", "", "second line")
    (mixed / "e.txt.gz").write_bytes(gzip.compress("packed – ü\n".encode()))
    write(mixed / "notes.md", "not read")
    assert list(read_documents(document_files([beir, mixed]))) == [
        *("Heart and diet", "of pyserini", "of MS MARCO", "the second", "head body", "packed – ü"),
        *("first line", "second line"),
    ]


def test_faults_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt", "fine")
    bad = write(tmp_path / "bad.jsonl", '{"body": 1}', "{", '{"text": "\\ud83d"}')
    table = write(tmp_path / "bad.tsv", "a\tb\tc")
    read = read_documents([good, bad, table])
    assert next(read) == "fine"
    with pytest.raises(CollectionError) as caught:
        list(read)
    told = str(caught.value)
    for part in ("bad.jsonl:1: expected 'text'", "bad.jsonl:2: invalid JSON", "bad.jsonl:3", "bad.tsv:1: expected 2"):
        assert part in told


def test_paths_that_hold_no_documents_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    odd = write(tmp_path / "table.csv", "a,b")
    with pytest.raises(CollectionError) as caught:
        document_files([tmp_path / "none", tmp_path / "empty", odd])
    assert [p.where for p in caught.value.problems] == [str(tmp_path / "none"), str(tmp_path / "empty"), str(odd)]


def test_kept_tokens_are_the_tokenizers(store: TokenStore) -> None:
    expected = make_tokenizer("bert")(TEXTS, truncation=True, max_length=12)["input_ids"]
    assert [store.document(i).tolist() for i in range(len(store))] == expected
    assert store.lengths.tolist() == [len(ids) for ids in expected]


def test_text_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """What has been read when a report comes is what has been tokenised: nothing is read ahead."""
    read = 0

    def many() -> Iterator[str]:
        nonlocal read
        for i in range(3000):
            read += 1
            yield TEXTS[i % len(TEXTS)]

    seen = []
    tokenizer = make_tokenizer("bert")
    report = lambda done: seen.append((done, read))  # noqa: E731
    write_tokens(many(), tokenizer, tmp_path / "t", max_length=12, shortest=3, progress=report)
    assert seen[-1] == (3000, 3000)
    assert all(done == so_far for done, so_far in seen)
    assert len(seen) > 4


def test_texts_too_short_are_left_out_and_counted(tmp_path: Path) -> None:
    write_tokens(iter(["", "of", "of the"]), make_tokenizer("bert"), tmp_path / "t", max_length=8, shortest=4)
    store = TokenStore.open(tmp_path / "t")
    assert (len(store), store.empty) == (1, 2)
    with pytest.raises(CollectionError, match="none of the 2 documents has 9 tokens"):
        write_tokens(iter(["a", "b"]), make_tokenizer("bert"), tmp_path / "n", max_length=8, shortest=9)


def test_every_document_comes_once_in_a_pass_and_passes_differ(store: TokenStore) -> None:
    examples = Examples(store, seed=5, epochs=2.5)
    assert len(examples) == 100
    seen = [tuple(examples[i][1].tolist()) for i in range(len(examples))]
    whole = sorted(tuple(store.document(i).tolist()) for i in range(40))
    assert sorted(seen[:40]) == sorted(seen[40:80]) == whole
    assert seen[:40] != seen[40:80]
    assert len(set(seen[80:])) == len({*seen[80:]}) <= 20
    assert [n for n, _ in (examples[i] for i in range(3))] == [0, 1, 2]
    assert [tuple(Examples(store, seed=6, epochs=1)[i][1].tolist()) for i in range(40)] != seen[:40]


@pytest.mark.parametrize("tokens", [1, 37, 500, 10_000])
def test_the_limit_of_tokens_is_used_and_not_passed(store: TokenStore, tokens: int) -> None:
    examples = Examples(store, seed=5, epochs=3, tokens=tokens)
    longer = Examples(store, seed=5, epochs=3, most=len(examples) + 1)
    assert examples.tokens == sum(len(examples[i][1]) for i in range(len(examples)))
    assert examples.tokens <= tokens or len(examples) == 1
    assert longer.tokens > tokens or len(examples) == 120


def test_masks_follow_from_seed_and_number_alone(store: TokenStore) -> None:
    tokenizer = make_tokenizer("bert")
    examples = Examples(store, seed=0, epochs=5)

    def collate(seed: int) -> Collate:
        return Collate("masked", tokenizer, vocab_size=len(tokenizer), seed=seed, mask_probability=0.3)

    together = collate(1)([examples[i] for i in range(200)])
    width = together["labels"].shape[1]
    for i in (0, 77, 199):
        alone = collate(1)([examples[i]])
        n = alone["labels"].shape[1]
        assert alone["labels"][0].tolist() == together["labels"][i, :n].tolist()
        assert alone["input_ids"][0].tolist() == together["input_ids"][i, :n].tolist()
        assert together["attention_mask"][i].tolist() == [1] * n + [0] * (width - n)
    labels, ids = together["labels"].numpy(), together["input_ids"].numpy()
    chosen = labels != IGNORED
    plain = (together["attention_mask"].numpy() == 1) & ~np.isin(ids, [0, 1, 2, 3])
    assert chosen.any(axis=1).all()
    assert not np.isin(labels, tokenizer.all_special_ids).any()
    assert 0.25 < chosen.sum() / (plain | chosen).sum() < 0.4
    masked, kept = (ids == tokenizer.mask_token_id)[chosen].mean(), (ids == labels)[chosen].mean()
    assert 0.7 < masked < 0.9
    assert 0.04 < kept < 0.2
    assert collate(2)([examples[0], examples[1]])["labels"].tolist() != labels[:2].tolist()


def test_the_next_token_is_learned_of_all_tokens_and_no_padding(store: TokenStore) -> None:
    tokenizer = make_tokenizer("mistral")
    examples = Examples(store, seed=0, epochs=1)
    batch = Collate("next_token", tokenizer, vocab_size=len(tokenizer), seed=0, mask_probability=0.1)(
        [examples[i] for i in range(8)]
    )
    there = batch["attention_mask"] == 1
    assert (batch["labels"][there] == batch["input_ids"][there]).all()
    assert (batch["labels"][~there] == IGNORED).all()
    assert there.sum() == sum(len(examples[i][1]) for i in range(8))
