"""What `jobs list` shows of a failed job's message."""

from __future__ import annotations

from mergesearch.cli.jobs import last_words


def test_a_long_message_is_cut_to_the_error_at_its_end() -> None:
    log = "loading " * 2000 + "ModuleNotFoundError: No module named 'torch'"
    shown = last_words(log)
    assert len(shown) == 120
    assert shown.startswith("… ")
    assert shown.endswith("ModuleNotFoundError: No module named 'torch'")


def test_a_short_message_is_shown_whole() -> None:
    assert last_words("Job finished successfully.") == "Job finished successfully."
    assert last_words("") == ""
