"""Labelled images for training and testing, by a one-line specification."""

from __future__ import annotations

from edp_fx.data.arrays import ArrayDataset
from edp_fx.data.base import SPLITS, Data, EpochSampler, make_loader, stratified_split
from edp_fx.data.sources import DATA_HELP, check_spec, load_data

__all__ = [
    "DATA_HELP",
    "SPLITS",
    "ArrayDataset",
    "Data",
    "EpochSampler",
    "check_spec",
    "load_data",
    "make_loader",
    "stratified_split",
]
