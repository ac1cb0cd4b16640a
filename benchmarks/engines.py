"""TensorRT-RTX engines of dense, decomposed and pruned-and-merged networks: what builds, how large, how far
from torch.

    python -m benchmarks.engines [--models resnet18,...] [--size 224] [--out benchmarks/results/engines.csv]

Every norm, bias and statistic is random (an untrained network's constants would hide faults). Variants:

- dense: the network as it is;
- inserted: each layer a pair of half its full rank;
- pruned: a random half of the exact channels and ranks of full-rank pairs zeroed, then pruned and merged,
  widths kept at a multiple of 8. It shows what lowers, not what a trained network keeps.

A row a network, variant and precision; rows already in the file are kept, so the script goes on where it
stopped. A Markdown table goes beside it. Nothing here runs on a GPU: no latency is given.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

import edp_fx
from benchmarks.rows import read, write
from edp_fx.cost import measure
from edp_fx.errors import EdpError
from edp_fx.inputs import randomize_
from edp_fx.models import load_model
from edp_fx.validation.masking import random_keep, zero_members

MODELS = (
    "resnet18",
    "mobilenetv2_100",
    "vit_tiny_patch16_224",
    "resnet50",
    "efficientnet_b0",
    "densenet121",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
)
VARIANTS = ("dense", "inserted", "pruned")
COLUMNS = (
    "model",
    "variant",
    "precision",
    "built",
    "macs",
    "params",
    "weights_memory",
    "engine_bytes",
    "layers",
    "generated_kernels",
    "misaligned_layers",
    "graph_rel_diff",
    "rounding_rel_diff",
    "file_rel_diff",
    "build_s",
    "total_s",
    "builder",
    "reason",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engines.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["model"], row["variant"], row["precision"]): row for row in read(options.out)}
    markdown(options.out.with_suffix(".md"), done)
    for name in options.models.split(","):
        for variant in options.variants.split(","):
            precisions = ("fp32", "fp16", "int8") if name == "resnet18" else ("fp32", "fp16")
            missing = [p for p in precisions if (name, variant, p) not in done]
            if not missing:
                continue
            for row in rows(name, variant, missing, options.size):
                done[(name, variant, row["precision"])] = row
                write(options.out, COLUMNS, done.values())
                markdown(options.out.with_suffix(".md"), done)
                print(
                    {k: row[k] for k in ("model", "variant", "precision", "built", "weights_memory", "reason")},
                    flush=True,
                )
            gc.collect()


def rows(name: str, variant: str, precisions: list[str], size: int) -> Iterator[dict[str, str]]:
    """A row for each precision, with the reason where there is no engine."""
    loaded = load_model(name, img_size=size)
    inputs = loaded.example_inputs
    blank = {column: "" for column in COLUMNS} | {"model": name, "variant": variant}
    try:
        network = make(loaded.model, inputs, variant)
    except EdpError as error:
        for precision in precisions:
            yield blank | {"precision": precision, "built": "no", "reason": f"{variant}: {error}"}
        return
    cost = measure(network, inputs)
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, *inputs[0].shape[1:], generator=generator) for _ in range(2)]
    for precision in precisions:
        row = blank | {"precision": precision, "macs": str(cost.macs), "params": str(cost.params)}
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = edp_fx.lower(
                    network,
                    inputs,
                    Path(folder, "network.engine"),
                    target="tensorrt-rtx",
                    precision=precision,
                    batch=(1, 8, 32),
                    calibration_loader=images if precision == "int8" else None,
                )
            except EdpError as error:
                yield row | {"built": "no", "reason": str(error)}
                continue
        assert result.plan is not None
        worst = {
            question: max((c.max_rel_diff for c in result.verification.checks if c.question == question), default=None)
            for question in ("graph", "rounding", "file")
        }
        yield row | {
            "built": "yes",
            "weights_memory": str(result.weights_memory),
            "engine_bytes": str(result.bytes),
            "layers": str(len(result.plan.layers)),
            "generated_kernels": str(result.plan.generated_kernels),
            "misaligned_layers": str(len(result.alignment.misaligned)),
            **{f"{k}_rel_diff": "" if v is None else f"{v:.2e}" for k, v in worst.items()},
            "build_s": f"{result.seconds['build']:.1f}",
            "total_s": f"{sum(result.seconds.values()):.1f}",
            "builder": str(result.builder),
        }


def make(model: nn.Module, inputs: tuple[Tensor, ...], variant: str) -> nn.Module:
    """The network of a variant, in eval mode."""
    randomize_(model)
    model.eval()
    if variant == "dense":
        return edp_fx.trace(model, inputs).eval()
    if variant == "inserted":
        return edp_fx.insert(edp_fx.trace(model, inputs), rank=0.5).eval()
    graph_module = edp_fx.insert(edp_fx.trace(model, inputs)).eval()
    graph = edp_fx.analyze(graph_module, inputs)
    keep = random_keep(graph, 0, exact_only=True)
    zero_members(graph_module, graph, keep, ("producer", "consumer", "affine", "other"))
    return edp_fx.prune_and_merge(graph_module, inputs, align=8).eval()


def markdown(path: Path, table: dict[tuple[str, str, str], dict[str, str]]) -> None:
    """The table a person reads: megabytes, and the share of the dense network's weights at the same
    precision.
    """
    lines = []
    for (name, _, precision), row in table.items():
        dense = table.get((name, "dense", precision), {}).get("weights_memory")
        memory = row["weights_memory"]
        share = f"{int(memory) / int(dense):.2f}" if memory and dense else ""
        size = f"{int(memory) / 1e6:.2f}" if memory else ""
        plan = f"{row['layers']} ({row['generated_kernels']})" if row["layers"] else ""
        worst = max(
            (float(row[f"{q}_rel_diff"]) for q in ("rounding", "file", "graph") if row[f"{q}_rel_diff"]), default=None
        )
        lines.append(
            {
                "network": name,
                "variant": row["variant"],
                "precision": precision,
                "GMACs": f"{float(row['macs']) / 1e9:.3f}" if row["macs"] else "",
                "weights MB": size,
                "of dense": share,
                "plan layers (generated)": plan,
                "graph vs torch": row["graph_rel_diff"],
                "worst vs fp32": "" if worst is None else f"{worst:.1e}",
                "built": row["built"] + (f": {row['reason']}" if row["reason"] else ""),
            }
        )
    text = tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    heading = (
        "# TensorRT-RTX engines\n\nWritten by `python -m benchmarks.engines`; its heading says what the variants are. "
        "Differences are in standard deviations of the output:\n*graph* is the file's operators and rounded weights in "
        "float32 against torch; *worst vs fp32* adds the rounding of the precision.\nBuilt without a GPU; none was run "
        "on one.\n\n"
    )
    path.write_text(heading + text + "\n")


if __name__ == "__main__":
    main()
