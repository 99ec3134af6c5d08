"""Tokens are matched by their text, whatever rows they have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mergesearch.sources.vocabulary import Vocabulary, match_tokens, vocabulary_difference

TOKENS = [f"t{i}" for i in range(12)]
SOURCES = ("template", "one", "two")


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[str, Vocabulary], dict[str, int]]:
    """Tokens with ids of their own, in tables that are longer or shorter than the vocabulary."""
    found, n_rows = {}, {}
    for source in SOURCES:
        tokens = draw(st.lists(st.sampled_from(TOKENS), unique=True, min_size=1))
        ids = draw(st.permutations(range(len(tokens))))
        found[source] = dict(zip(tokens, ids, strict=True))
        n_rows[source] = max(1, len(tokens) + draw(st.integers(-2, 3)))
    return found, n_rows


@given(vocabularies())
def test_rows_are_those_of_the_same_token_in_every_source(
    drawn: tuple[dict[str, Vocabulary], dict[str, int]],
) -> None:
    known, n_rows = drawn
    rows = match_tokens(known, n_rows, "template")
    by_row = {source: {row: token for token, row in v.items()} for source, v in known.items()}
    named = [[by_row[source][row] for row in rows[source].tolist()] for source in SOURCES]
    assert named[0] == named[1] == named[2]
    usable = [{t for t, row in known[s].items() if row < n_rows[s]} for s in SOURCES]
    assert set(named[0]) == usable[0] & usable[1] & usable[2]
    assert rows["template"].tolist() == sorted(set(rows["template"].tolist()))


def test_a_row_with_two_names_is_merged_once() -> None:
    rows = match_tokens(
        {"template": {"a": 0, "A": 0, "b": 1}, "one": {"A": 1, "a": 0, "b": 5}}, {"template": 2, "one": 6}, "template"
    )
    assert {source: found.tolist() for source, found in rows.items()} == {"template": [0, 1], "one": [0, 5]}


def test_differences_name_some_tokens() -> None:
    template = {token: i for i, token in enumerate(TOKENS)}
    other = {token: i for i, token in enumerate(["t1", "t0", "new"])}
    assert vocabulary_difference(template, template) is None
    assert vocabulary_difference(template, other) == (
        "its tokenizer has 3 tokens, the template's 12: 10 of the template's are missing, 1 are new, 2 have another id "
        "('t0' is 1, the template's is 0; missing: 't10', 't11', 't2', …; new: 'new')."
    )
