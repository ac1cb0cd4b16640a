"""One program, one verdict."""

from __future__ import annotations

import re
import time
import traceback
import warnings
from typing import Any

from edp_fx.errors import EdpError
from tests.fuzz.programs import Plan, write
from tests.fuzz.stages import Invalid, Road, Wrong

ONNX_EVERY = 20  # an export takes longer than all other stages of a program
RIGHT, REFUSED, WRONG, ERROR, INVALID, DEAD = "right", "refused", "wrong", "error", "invalid", "dead"
FAILED = (WRONG, ERROR, INVALID, DEAD)


def judge(plan: Plan, seed: int) -> dict[str, Any]:
    """Put a program through all stages.

    ``verdict``: ``right``; ``refused``, by an :class:`EdpError` of one line (later stages may have been
    gone through all the same); ``wrong``; ``error``, any other exception
    or a refusal of many lines; ``invalid``, a program that does not run. ``dead`` is said by who watches the process.
    """
    began = time.perf_counter()
    road = Road(write(plan), seed, onnx=seed % ONNX_EVERY == 0)
    verdict, reason, trace = RIGHT, "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused = road.walk()
        if refused:
            verdict, (road.stage, reason) = REFUSED, refused[0]
    except EdpError as error:
        reason = str(error)
        verdict = REFUSED if "\n" not in reason.strip() else ERROR
    except Wrong as error:
        verdict, reason = WRONG, str(error)
    except Invalid as error:
        verdict, reason = INVALID, str(error)
    except Exception as error:
        verdict, reason = ERROR, f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error)[-12:])
    return {
        "seed": seed,
        "verdict": verdict,
        "stage": road.stage if verdict != RIGHT else "",
        "reason": reason[:600],
        "traceback": trace[-3000:],
        "seconds": round(time.perf_counter() - began, 2),
        "onnx": road.onnx,
        **road.facts,
    }


def kind_of(reason: str) -> str:
    """A reason without names and numbers, so that alike ones are counted together."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "…", reason.splitlines()[0] if reason else "")
    text = re.sub(r"[\w.]*\d[\w.]*", "…", text)
    return re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "(…)", text)[:160]
