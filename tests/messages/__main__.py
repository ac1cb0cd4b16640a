"""``python -m tests.messages``: ask every use and write docs/messages.md; ``--only WORD`` asks some and prints them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.messages.commands import COMMANDS
from tests.messages.library import LIBRARY
from tests.messages.uses import Answer, ask_command, ask_python, inside, prepare

PAGE = Path(__file__).parents[2] / "docs" / "messages.md"
HEAD = """# What wrong uses are answered with

Made by `python -m tests.messages`; a test holds it to what the program says. Every command below ends with exit status
2, every line of Python with an `edp_fx.EdpError`; none leaves a file behind.
"""


def ask_all(root: Path) -> Iterator[tuple[str, str, Answer]]:
    """(group, what was typed, the answer), in a directory made ready."""
    prepare(root)
    with inside(root):
        for group, lines in COMMANDS.items():
            for line in lines:
                yield group, f"edp-fx {line}", ask_command(line)
        for group, sources in LIBRARY.items():
            for source in sources:
                yield group, source, ask_python(source)


def page(answers: list[tuple[str, str, Answer]]) -> str:
    """The table as Markdown."""
    parts, last = [HEAD], ""
    for group, typed, answer in answers:
        if group != last:
            parts.append(f"\n## {group}\n\n| typed | answer |\n|---|---|")
            last = group
        lines = [one.strip() for one in typed.strip().splitlines()]
        parts.append(f"| {'<br>'.join(f'`{_cell(one)}`' for one in lines)} | {_cell(answer.line)} |")
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    only = sys.argv[2] if sys.argv[1:2] == ["--only"] else ""
    with tempfile.TemporaryDirectory() as folder:
        answers = []
        for group, typed, answer in ask_all(Path(folder)):
            answers.append((group, typed, answer))
            if answer.fault or only:
                print(f"{typed}\n    {answer.line}\n    {answer.fault}", flush=True)
    if not only:
        PAGE.write_text(page(answers))
    faults = sum(bool(answer.fault) for *_, answer in answers)
    print(f"{len(answers)} uses, {faults} not answered in one clear line")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
