"""What `mergesearch quickstart` writes into a log file while its phases run."""

from __future__ import annotations

import re

import pytest

from mergesearch.cli.quickstart import _Reporter


def test_the_phase_that_runs_is_told_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with _Reporter(quiet=False).phase("training"):
        assert capsys.readouterr().out == "  training"
    assert re.fullmatch(r": \d+\.\d s\n", capsys.readouterr().out)


def test_an_error_begins_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), _Reporter(quiet=False).phase("training"):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "  training\n"


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with _Reporter(quiet=True).phase("training"):
        pass
    assert not capsys.readouterr().out
