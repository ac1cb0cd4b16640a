"""The main job of ``edp-fx compress``: from a model's name to a compact network, its files and its figures."""

from __future__ import annotations

from edp_fx.job.plan import Images, Lowering, Network, Plan
from edp_fx.job.recipes import Shipped, find_recipe, shipped
from edp_fx.job.runner import Job, Runner
from edp_fx.job.written import RUN, read_plan, write_plan

__all__ = [
    "RUN",
    "Images",
    "Job",
    "Lowering",
    "Network",
    "Plan",
    "Runner",
    "Shipped",
    "find_recipe",
    "read_plan",
    "shipped",
    "write_plan",
]
