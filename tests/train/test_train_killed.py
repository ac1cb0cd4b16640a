"""The command killed by SIGKILL and resumed ends with the weights of a run left in peace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resume.py"


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--epochs", "3", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads(done.stdout)["moments"]) == 2
