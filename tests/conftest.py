"""What holds for every test: a fresh machine, one thread, a seed; and what this machine cannot run is said."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.helpers.fresh import hide_machine

_empty = tempfile.TemporaryDirectory(prefix="edp_fx-tests-", ignore_cleanup_errors=True)
hide_machine(Path(_empty.name))

import pytest  # noqa: E402  the libraries read where their caches are when they are imported
import torch  # noqa: E402

from edp_fx.channels.rules.registry import REGISTRY  # noqa: E402
from edp_fx.compressor.kinds import KINDS  # noqa: E402
from edp_fx.lowering.targets import TARGETS  # noqa: E402
from tests.helpers.idx import fashion_mnist  # noqa: E402, F401  a fixture of all


def _browser() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


_NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "gpu": (torch.cuda.is_available, "no NVIDIA GPU"),
    "browser": (_browser, "no chromium with chromedriver"),
}
_not_run: dict[str, int] = {}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def _registered() -> list[set[object]]:
    return [set(KINDS), set(TARGETS), set(REGISTRY.rules), set(REGISTRY.repairs)]


_OURS = _registered()


@pytest.fixture(autouse=True)
def _nothing_stays_registered() -> Iterator[None]:
    """What a test registers would change what later tests of the same process see."""
    yield
    assert _registered() == _OURS, "a kind, target or rule that a test registered is still there: remove() it"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this machine cannot run, and say so at the end."""
    for mark, (available, reason) in _NEEDS.items():
        if available():
            continue
        gone = [item for item in items if item.get_closest_marker(mark)]
        if gone and mark != "gpu" and os.environ.get("EDP_FX_COMPLETE"):
            raise pytest.UsageError(f"{len(gone)} tests cannot run: {reason}")
        _not_run[mark] = len(gone)
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for mark, count in _not_run.items():
        if count:
            terminalreporter.write_line(f"not run: {count} tests marked {mark} ({_NEEDS[mark][1]})")
