"""At least 100 wrong uses, each answered in one line; the table in docs/ says what the program says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.messages.__main__ import PAGE, ask_all, page


@pytest.mark.slow
def test_every_wrong_use_is_answered_in_one_line(tmp_path: Path) -> None:
    answers = list(ask_all(tmp_path))
    faults = [(typed, answer.line, answer.fault) for _, typed, answer in answers if answer.fault]
    assert not faults
    assert len(answers) >= 100
    assert PAGE.read_text() == page(answers), "make it anew: python -m tests.messages"
