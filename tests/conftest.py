from __future__ import annotations

import os
import shutil

import pytest
import torch

_NEEDS = {
    "gpu": (torch.cuda.is_available, "no NVIDIA GPU"),
    "browser": (
        lambda: bool(shutil.which("chromium") and shutil.which("chromedriver")),
        "no chromium with chromedriver",
    ),
}
_not_run: dict[str, int] = {}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this machine cannot run, and say so at the end."""
    for mark, (available, _) in _NEEDS.items():
        if available():
            continue
        gone = [item for item in items if item.get_closest_marker(mark)]
        if gone and mark != "gpu" and os.environ.get("EDP_FX_COMPLETE"):
            raise pytest.UsageError(f"{len(gone)} tests cannot run: {_NEEDS[mark][1]}")
        _not_run[mark] = len(gone)
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for mark, count in _not_run.items():
        if count:
            terminalreporter.write_line(f"not run: {count} tests marked {mark} ({_NEEDS[mark][1]})")
