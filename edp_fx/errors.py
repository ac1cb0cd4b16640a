"""Every error edp_fx raises on purpose.

The command line prints the message of an :class:`EdpError` as one line and exits with 2, so a message says
what is wrong *and* what to do, and names the node, file or option it is about.
"""

from __future__ import annotations


class EdpError(Exception):
    """Base class: something the user can act on."""


class MissingExtraError(EdpError):
    """A package is not installed that an extra brings; the message has the command that installs it."""


class ModelError(EdpError):
    """The model cannot be found, built or run with the given example inputs."""


class DataError(EdpError):
    """The data set is unknown, missing or unreadable."""


class TraceError(EdpError):
    """No front end could turn the model into a graph."""


class PassError(EdpError):
    """A pass's precondition or postcondition does not hold; names the pass and the node."""


class AnalysisError(EdpError):
    """The channel analysis could not run the graph, or a group id / layer name is unknown."""


class BudgetError(EdpError):
    """The budget is malformed or cannot be reached; the message says the least that can."""


class UnreachableError(BudgetError):
    """Even the smallest network that may be made costs more than the budget."""


class TrainingError(EdpError):
    """Training cannot go on (NaN loss, failing loader); the last checkpoint is intact."""


class RemovalError(EdpError):
    """Removing what is zero changed the network's outputs; names what is to blame. The network is as it was before."""


class CheckpointError(EdpError):
    """A saved model is damaged, truncated, mismatched or hostile. Nothing of it was executed."""


class LoweringError(EdpError):
    """The graph cannot be exported, verified or built for the target. No file was left behind."""


def one_line(error: BaseException) -> str:
    """What an exception says, in one line; its type where it says nothing.

    One that was raised in a process of a DataLoader says it last, behind the traceback there.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Caught ") and len(lines) > 1:
        return lines[-1].partition(": ")[2] or lines[-1]
    return lines[0]


def typed_line(error: BaseException) -> str:
    """The type of another library's exception and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def whole_line(error: BaseException, limit: int = 400) -> str:
    """All that an exception says, without line breaks; its type before it where it is not our own."""
    text = " ".join(str(error).split())[:limit]
    return text if isinstance(error, EdpError) else f"{type(error).__name__}: {text or 'no message'}"
