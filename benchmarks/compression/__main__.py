"""See the package's description."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from tabulate import tabulate

import benchmarks.compression as package
from benchmarks.compression.jobs import runner
from benchmarks.compression.plan import plan, quick
from benchmarks.compression.results import Results, only_one
from benchmarks.compression.trial import Setting
from edp_fx.errors import EdpError

COMMITTED = Path("benchmarks/results/compression.jsonl")
QUICK = Path("runs/compression-quick.jsonl")
SHOWN = ("network", "method", "target", "seed", "macs_ratio", "params_ratio", "accuracy", "latency_ms", "seconds")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="benchmarks.compression"
    )
    parser.add_argument("--quick", action="store_true", help=f"two epochs of a few images, into {QUICK}, from anew")
    parser.add_argument("--out", type=Path, help=f"file of results; {COMMITTED} where not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, for a GPU and a core for each")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    out = options.out or (QUICK if options.quick else COMMITTED)
    setting = Setting(2, 256, 500) if options.quick else Setting()
    began = datetime.now().isoformat(timespec="minutes")  # says which rows were made side by side
    failed = False
    try:
        with only_one(out):
            if options.quick:
                out.write_text("")
            results = Results(out)
            with runner(setting, options.jobs) as ended:
                for tasks in [quick()] if options.quick else plan(results.rows):
                    for task, row in ended([task for task in tasks if task not in results.rows]):
                        name = f"{task.network} {task.method} to {task.target:g}, seed {task.seed}"
                        if isinstance(row, Exception):
                            failed = True
                            print(f"{name}: {type(row).__name__}: {row}", file=sys.stderr, flush=True)
                            continue
                        results.add(task, row | {"began": began})
                        print(f"{name}: MACs {row['macs_ratio']:.3f}, accuracy {row['accuracy']:.4f}", flush=True)
    except EdpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = [[row[key] for key in SHOWN] for row in results.rows.values()]
    print(tabulate(lines, headers=SHOWN, floatfmt=".4g"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
