"""Kills ``edp-fx compress`` by SIGKILL at random moments, resumes it, and compares with a run left in peace.

    python -m benchmarks.resume --kills 10

Every process is killed a random time after its first write, so that the kills are spread over all of the training;
the last is left to end.
The weights of the compressed and of the dense network must be those of the undisturbed run, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NETWORK = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )
"""
WEIGHTS = ("weights.safetensors", "dense/weights.safetensors")
PATIENCE = 300.0  # seconds that one process may take


def start(directory: Path, out: Path, epochs: int) -> subprocess.Popen[str]:
    """The command in a process of its own; it resumes where there is anything to go on with."""
    options = ["--data", "digits", "--img-size", "16", "--macs", "0.4", "--epochs", str(epochs), "--target", "onnx"]
    options += ["--out", str(out), "--resume"] if out.is_dir() and any(out.iterdir()) else ["--out", str(out)]
    path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "edp_fx", "compress", "killed_network:net", *options],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> None:
    """Wait for a process that should succeed."""
    _, errors = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:
        raise SystemExit(f"the command failed with {process.returncode}:\n{errors[-2000:]}")


def first_write(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until the process has written to ``path``, or has ended."""
    known, deadline = path.stat().st_mtime_ns if path.exists() else 0, time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.stat().st_mtime_ns != known:
            return
        time.sleep(0.01)


def last_step(out: Path) -> int:
    """The last step that the metrics of a run tell of."""
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue  # cut off by the kill
    return 0


def compare(kills: int, epochs: int, seed: int) -> dict[str, Any]:
    """What happened; ``equal`` says whether the weights are the same."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "killed_network.py").write_text(NETWORK)
        whole, parts = directory / "whole", directory / "parts"
        process = start(directory, whole, epochs)
        first_write(process, whole / "metrics.jsonl")
        began = time.monotonic()
        first_write(process, whole / WEIGHTS[0])
        length = time.monotonic() - began  # of training; what follows writes what it finds anew
        ended(process)
        moments = []
        for _ in range(kills):
            process = start(directory, parts, epochs)
            first_write(process, parts / "metrics.jsonl")
            time.sleep(rng.uniform(0, 2 * length / kills))  # together about once through the run
            process.kill()
            process.communicate(timeout=PATIENCE)
            moments.append({"compress": last_step(parts), "dense": last_step(parts / "dense")})
        ended(start(directory, parts, epochs))
        equal = {file: (whole / file).read_bytes() == (parts / file).read_bytes() for file in WEIGHTS}
    return {"kills": kills, "epochs": epochs, "seed": seed, "seconds": round(length, 1), "moments": moments, **equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = compare(options.kills, options.epochs, options.seed)
    print(json.dumps(result))
    if not all(result[file] for file in WEIGHTS):
        raise SystemExit("the weights differ from those of the undisturbed run")


if __name__ == "__main__":
    main()
