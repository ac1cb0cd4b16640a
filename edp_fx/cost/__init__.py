"""What a network costs: as a function of what is kept (for budgets), and measured (for reports)."""

from edp_fx.cost.device import Device, device_names, load_device
from edp_fx.cost.measure import Measurement, measure, median_latency
from edp_fx.cost.model import METRICS, POSITION, TRAFFIC, CostModel
from edp_fx.cost.terms import PairTerms, Term

__all__ = [
    "METRICS",
    "POSITION",
    "TRAFFIC",
    "CostModel",
    "Device",
    "Measurement",
    "PairTerms",
    "Term",
    "device_names",
    "load_device",
    "measure",
    "median_latency",
]
