"""What a model's files say of its licence, and what a merge of several may say of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergesearch.results.licences import Licence, common, concerns, read_licence

APACHE, MIT = Licence("apache-2.0"), Licence("mit")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: MIT\n---\n# Model\n", MIT),
        ("---\nlicense: apache-2.0\ntags: [a]\n---", APACHE),
        ("---\nlicense: [mit, apache-2.0]\n---\n", Licence("apache-2.0 and mit")),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://example.org\n---\n",
            Licence("other", "own", "https://example.org"),
        ),
        ("---\nlicense: unknown\n---\n", None),
        ("---\nlicense: [broken\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("# A card without front matter\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_front_matter_of_the_card(tmp_path: Path, card: str, expected: Licence | None) -> None:
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert read_licence(tmp_path) == expected


def test_a_file_of_a_well_known_text_tells_where_the_card_does_not(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "LICENSE").write_text("do what you like", encoding="utf-8")
    assert read_licence(tmp_path) is None
    own = Path(__file__).resolve().parents[2] / "LICENSE"
    (tmp_path / "LICENSE").write_text(own.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_licence(tmp_path) == APACHE
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert read_licence(tmp_path) == MIT


def test_one_licence_is_the_merges_own() -> None:
    assert common({"a": MIT, "b": MIT}) == MIT
    assert concerns({"a": MIT, "b": MIT}) == []


def test_different_ones_and_unknown_ones_are_told_by_name() -> None:
    for licences in ({"a": MIT, "b": APACHE}, {"a": MIT, "b": None}, {"a": None, "b": None}):
        assert common(licences) is None
    (told, consequence) = concerns({"a": MIT, "b": APACHE, "c": MIT})
    assert "a, c: mit; b: apache-2.0" in told
    assert "sets no `license`" in consequence
    assert "licence of b is not known" in concerns({"a": MIT, "b": None})[0]
    assert len(concerns({"a": MIT, "b": APACHE, "c": None})) == 3
