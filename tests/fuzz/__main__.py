"""``python -m tests.fuzz``: a campaign of programs, or one of them again."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.pool import judged, serve
from tests.fuzz.verdict import DEAD, ERROR, FAILED, INVALID, REFUSED, RIGHT, WRONG, kind_of


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where nothing is wrong, dead or stopped by anything but a refusal."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, metavar="N", help="one program: print its source and what becomes of it")
    parser.add_argument("--reduce", action="store_true", help="with --seed: leave out what the failure does not need")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="programs of a campaign")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="seed of the campaign's first program")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="seconds a program may take")
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"), metavar="FILE", help="counts, as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        serve()
        return 0
    if options.seed is not None:
        return _one(options.seed, options.reduce, options.timeout)
    records = []
    began = time.monotonic()
    seeds = range(options.first, options.first + options.count)
    for record in judged(({"seed": seed} for seed in seeds), options.jobs, options.timeout):
        records.append(record)
        if record["verdict"] in FAILED:
            print(f"{record['seed']}: {record['verdict']} in {record['stage']}: {record['reason'][:200]}", flush=True)
        if len(records) % 20 == 0:  # a campaign that is stopped leaves what it has found
            options.out.write_text(json.dumps(summary(records), indent=1) + "\n")
            print(f"{len(records)} programs, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    counts = summary(records)
    options.out.write_text(json.dumps(counts, indent=1) + "\n")
    print(json.dumps({name: counts[name] for name in ("programs", *_VERDICTS)}))
    return int(any(counts[name] for name in FAILED))


_VERDICTS = (RIGHT, REFUSED, WRONG, ERROR, DEAD, INVALID)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of a campaign: verdicts, refusals by stage and reason, and every failure."""
    verdicts = Counter(one["verdict"] for one in records)
    refusals = [
        (f"{one['stage']}: {kind_of(one['reason'])}", one["seed"]) for one in records if one["verdict"] == REFUSED
    ]
    refused = Counter(reason for reason, _ in refusals)
    first = dict(reversed(refusals))
    keys = ("seed", "verdict", "stage", "reason")
    failed = sorted((one for one in records if one["verdict"] in FAILED), key=lambda one: one["seed"])
    return {
        "programs": len(records),
        "first_seed": min((one["seed"] for one in records), default=None),
        **{name: verdicts[name] for name in _VERDICTS},
        "through_onnx": sum(one["verdict"] == RIGHT and one["onnx"] for one in records),
        "with_opaque_modules": sum(bool(one.get("opaque")) for one in records),
        "pairs": sum(one.get("pairs", 0) for one in records),
        "prunable_groups": sum(one.get("groups", 0) for one in records),
        "refused_by_reason": {
            reason: {"programs": number, "first": first[reason]} for reason, number in refused.most_common()
        },
        "failures": [{key: one[key] for key in keys} for one in failed],
    }


def _one(seed: int, reduce: bool, timeout: float) -> int:
    from tests.fuzz.programs import plan, write
    from tests.fuzz.reduce import reduced, task_of

    made = plan(seed)
    if reduce:
        made, record = reduced(seed, timeout)
    else:
        (record,) = judged([task_of(made, seed)], timeout=timeout)
    print(write(made).source)
    print(f"# blocks: {', '.join(name for name, _ in made.blocks)}; inputs: {made.inputs}; ending: {made.ending}")
    print(record.pop("traceback"), end="")
    print(json.dumps(record))
    return int(record["verdict"] in FAILED)


if __name__ == "__main__":
    sys.exit(main())
