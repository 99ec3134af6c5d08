"""The guard of pages itself: what it lets through, and what fails a test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser import OfflinePage

pytest_plugins = ["tests.browser"]


def test_a_page_of_this_machine_is_shown(offline_page: OfflinePage, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<p id=x>here</p>", encoding="utf-8")
    with offline_page() as page:
        page.goto(file.as_uri())
        assert page.inner_text("#x") == "here"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<img src='http://192.0.2.1/x.png'>", "asked for http://192.0.2.1/x.png"),
        ("<script>nothing.at.all</script>", "an error on the page"),
        ("<script>console.error('oh')</script>", "the console says: oh"),
    ],
)
def test_what_leaves_the_machine_or_breaks_fails(
    offline_page: OfflinePage, tmp_path: Path, body: str, reason: str
) -> None:
    file = tmp_path / "page.html"
    file.write_text(body, encoding="utf-8")
    with pytest.raises(AssertionError, match=reason):
        visit(offline_page, file.as_uri())


def visit(offline_page: OfflinePage, address: str) -> None:
    with offline_page() as page:
        page.goto(address)
        page.wait_for_load_state("networkidle")
