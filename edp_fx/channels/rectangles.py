"""Keep every tensor rectangular: choose along which axis a jointly labelled tensor may lose indices.

A tensor that carries one label array over several axes (a fused qkv viewed as 3 x heads x dims, a channel shuffle
viewed as groups x channels) must stay a box after pruning, so its labels may in the end vary along one axis only.
"""

from __future__ import annotations

import numpy as np

from edp_fx.channels.atoms import Grid, Ledger
from edp_fx.channels.labels import FROZEN


def rectangularise(ledger: Ledger) -> np.ndarray:
    """Tie jointly labelled tensors down to one free axis each and return the final component of every atom.

    The free axis is the one that leaves most indices removable, the innermost of equals. Ties are added to the
    ledger under the node that made the tensor.
    """
    pending = list(_distinct(ledger))
    component = ledger.components()
    while pending:
        known = len(ledger.ties)
        frozen = np.zeros(int(component.max()) + 1, dtype=bool)
        for mark in ledger.freezes:
            frozen[component[mark.atoms]] = True
        frozen[component[FROZEN]] = True
        touched: set[int] = set()
        waiting = []
        for grid in pending:
            roots = component[grid.atoms]
            seen = set(np.unique(roots).tolist())
            if touched & seen:
                waiting.append(grid)
                continue
            if len(grid.fixed) == grid.atoms.ndim:
                ledger.freeze(grid.where, grid.atoms, "selected by its number")
                continue
            free = _choose(roots, frozen, grid.fixed)
            if free is None:
                continue
            ledger.tie(grid.where, grid.atoms, _collapse(grid.atoms, free))
            touched |= seen
        if not touched and not waiting:
            break
        component = ledger.components(component, known)
        pending = waiting
    return component


def _distinct(ledger: Ledger) -> list[Grid]:
    """Grids that differ by more than axes of size 1; those with fixed axes come first."""
    seen: set[bytes] = set()
    distinct = []
    for grid in sorted(ledger.grids, key=lambda one: not one.fixed):
        real = [axis for axis, size in enumerate(grid.atoms.shape) if size > 1]
        atoms = np.squeeze(grid.atoms)
        fixed = tuple(real.index(axis) for axis in grid.fixed)
        key = repr((atoms.shape, fixed)).encode() + atoms.tobytes()
        if key not in seen:
            seen.add(key)
            distinct.append(Grid(grid.where, atoms, fixed))
    return distinct


def _varies(roots: np.ndarray, axis: int) -> bool:
    return bool((roots != np.take(roots, [0], axis=axis)).any())


def _collapse(grid: np.ndarray, free: int) -> np.ndarray:
    """The first slice along every axis but ``free``, kept broadcastable."""
    index = tuple(slice(None) if axis == free else slice(0, 1) for axis in range(grid.ndim))
    return grid[index]


def _choose(roots: np.ndarray, frozen: np.ndarray, fixed: tuple[int, ...]) -> int | None:
    """The axis to leave free, or None where the labels vary along one free axis at most."""
    varying = [axis for axis in range(roots.ndim) if _varies(roots, axis)]
    free = [axis for axis in varying if axis not in fixed]
    if len(varying) <= 1 and free == varying:
        return None
    best, best_count = next(axis for axis in reversed(range(roots.ndim)) if axis not in fixed), -1
    for axis in reversed(free):
        slices = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
        alive = slices[~frozen[slices].any(axis=1)]
        count = len({root for root in alive[:, 0].tolist()})
        if count > best_count:
            best, best_count = axis, count
    return best
