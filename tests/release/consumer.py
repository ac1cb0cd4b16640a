"""A program that uses edp_fx, for type checkers: what is shipped says what each call takes and gives."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx, nn
from typing_extensions import assert_type

import edp_fx
from edp_fx.errors import EdpError, MissingExtraError


def small(model: nn.Module, images: torch.Tensor) -> fx.GraphModule:
    graph = edp_fx.analyze(model, images)
    assert_type(graph, edp_fx.ChannelGraph)
    assert_type([group.size for group in graph.prunable], list[int])
    method = edp_fx.Method.preset("truncate", macs=0.5)
    cut = edp_fx.compress(model, None, method=method, epochs=0, example_inputs=images)
    assert_type(cut, fx.GraphModule)
    assert_type(edp_fx.insert(edp_fx.trace(model, images)), fx.GraphModule)
    edp_fx.save(cut, Path("small"), images)
    return edp_fx.load("small")


def cost(model: nn.Module, images: torch.Tensor) -> float:
    try:
        return edp_fx.measure(model, images).macs
    except MissingExtraError as error:
        return len(as_user_error(error).args)


def as_user_error(error: EdpError) -> EdpError:
    return error


wrong: str = edp_fx.measure(nn.Identity(), torch.zeros(1)).macs  # the one mistake, which a checker must find
