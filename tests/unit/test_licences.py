"""What a model's files say of its licence, and what a merge of several may say of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergesearch.results.folder import RECIPE_FILE
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
        ("\ufeff---\nlicense: mit\n---\n", MIT),
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


def test_other_without_a_name_is_no_licence_that_two_models_share() -> None:
    for unnamed in (Licence("other"), Licence("other", None, "LICENSE")):
        both = {"a": unnamed, "b": unnamed}
        assert common(both) is None
        assert "licence of a, b is not known" in concerns(both)[0]
    named = Licence("other", "own")
    assert common({"a": named, "b": named}) == named


def test_a_licence_file_that_an_export_took_from_its_template_is_not_the_exports_own(tmp_path: Path) -> None:
    own = Path(__file__).resolve().parents[2] / "LICENSE"
    (tmp_path / "LICENSE").write_text(own.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "README.md").write_text("---\ntags: [merge]\n---\n", encoding="utf-8")
    assert read_licence(tmp_path) == APACHE
    (tmp_path / RECIPE_FILE).write_text("{}", encoding="utf-8")
    assert read_licence(tmp_path) is None


def test_a_modified_text_is_not_the_known_one(tmp_path: Path) -> None:
    text = "{}MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\n"
    (tmp_path / "LICENSE.d").mkdir()
    (tmp_path / "LICENSE").write_text(text.format(""), encoding="utf-8")
    assert read_licence(tmp_path) == MIT
    (tmp_path / "LICENSE").write_text(text.format("Modified "), encoding="utf-8")
    assert read_licence(tmp_path) is None
