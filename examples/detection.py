"""A detector of torchvision or ultralytics on images of your own, dense and compressed, trained alike.

    python examples/detection.py --data raccoon --model ssdlite320_mobilenet_v3_large --macs 0.5 --epochs 60 --out small
    python examples/detection.py --data raccoon --model yolo11n --size 256 --macs 0.5 --epochs 60 --out small
    python examples/detection.py --data raccoon --evaluate small

DATA has ``images/*.jpg`` and ``annotations/*.xml`` (Pascal VOC); each fifth image is for testing. The detector's
own code trains and evaluates it; its backbone, pyramid and heads are compressed inside it. What is written: the network
(``weights.safetensors`` and ``recipe.json``) and ``report.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.errors import DataError, EdpError, ModelError, TrainingError
from edp_fx.parts import Parts

if __package__:
    from examples import voc
    from examples.yolo import Yolo
else:
    import voc
    from yolo import Yolo

Loader = DataLoader[tuple[list[Tensor], list[voc.Target]]]


def build(name: str, classes: int, size: int, regions: int, pretrained: bool) -> nn.Module:
    """A detector for so many classes beside the background."""
    if name.startswith("yolo"):
        return Yolo(name, classes, size)
    try:
        builder = torchvision.models.get_model_builder(name)
    except ValueError as error:
        raise ModelError(f"torchvision has no model {name!r}: {', '.join(detectors())}") from error
    sizes: dict[str, Any] = {} if name.startswith("ssd") else {"min_size": size, "max_size": 2 * size}
    if "rcnn" in name:
        sizes["box_batch_size_per_image"] = regions
    weights = "DEFAULT" if pretrained else None
    return builder(weights=None, weights_backbone=weights, num_classes=classes + 1, **sizes)


def detectors() -> list[str]:
    """The names of torchvision's detectors."""
    return torchvision.models.list_models(module=torchvision.models.detection)


def train(model: nn.Module, loader: Loader, options: argparse.Namespace, parts: Parts | None) -> float:
    """Train a detector by its own losses; the parts, where given, to their budget. Returns the last epoch's loss."""
    steps = len(loader) * options.epochs
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=options.lr, momentum=0.9, nesterov=True)
    warm = max(1, min(200, steps // 10))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm)),
        ],
        [warm],
    )
    compressor = None
    if parts is not None:
        changes = {"macs": options.macs, **dict(zip(("start", "end"), options.removal or ()))}
        compressor = Compressor(
            parts.graph, parts.inputs, options.method, optimizer=optimizer, total_steps=steps, **changes
        )
    device = next(model.parameters()).device
    mean = 0.0
    for epoch in range(1, options.epochs + 1):
        model.train()
        losses: list[float] = []
        for images, targets in loader:
            on_device = [{key: value.to(device) for key, value in target.items()} for target in targets]
            loss = sum(model([image.to(device) for image in images], on_device).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            if compressor is not None:
                compressor.step()
            losses.append(float(loss.detach()))
        mean = sum(losses) / len(losses)
        if not mean < float("inf"):
            raise TrainingError(f"the loss is {mean} in epoch {epoch}: give a smaller --lr than {options.lr}")
        at = f", at {compressor.macs:.3f} of its MACs" if compressor is not None else ""
        print(f"epoch {epoch}/{options.epochs}: loss {mean:.3f}{at}", flush=True)
    if compressor is not None:
        compressor.finish()
        print(f"pruning and merging changed the parts' outputs by at most {compressor.max_rel_diff:.1e} (relative)")
    return mean


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader) -> tuple[float, float]:
    """AP50 in 0..1, and the seconds an image takes."""
    model.eval()
    device = next(model.parameters()).device
    found: list[voc.Target] = []
    wanted: list[voc.Target] = []
    started = time.perf_counter()
    for images, targets in loader:
        found += [{k: v.cpu() for k, v in one.items()} for one in model([image.to(device) for image in images])]
        wanted += targets
    return voc.average_precision(found, wanted), (time.perf_counter() - started) / len(found)


def facts(model: nn.Module, parts: Parts, loader: Loader) -> dict[str, float]:
    """What the table has of one detector."""
    measured = edp_fx.measure(parts.graph, parts.inputs)
    ap50, seconds = evaluate(model, loader)
    return {"AP50": ap50, "MACs": measured.macs, "parameters": measured.params, "ms per image": 1000 * seconds}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of figures, one a detector."""
    lines = [f"{'':12}{'AP50':>10}{'MACs':>12}{'parameters':>14}{'ms per image':>14}"]
    for name, row in rows.items():
        macs, params = f"{row['MACs'] / 1e6:.1f} M", f"{row['parameters'] / 1e6:.2f} M"
        lines.append(f"{name:12}{100 * row['AP50']:>8.1f} %{macs:>12}{params:>14}{row['ms per image']:>14.1f}")
    return "\n".join(lines)


def read(options: argparse.Namespace) -> tuple[list[str], Loader, Loader, Any]:
    """The classes, the images for training and for testing, and the arguments of a first call."""
    annotations = voc.read_annotations(options.data, options.classes)
    classes = options.classes or sorted({name for one in annotations for name in one.names})
    training, testing = voc.split(annotations)
    batch = {"batch_size": options.batch, "num_workers": options.workers, "collate_fn": voc.collate}
    loader: Loader = DataLoader(voc.Boxes(training, classes, flip=True), shuffle=True, drop_last=True, **batch)
    test: Loader = DataLoader(voc.Boxes(testing, classes), **batch)
    if not len(loader):
        raise DataError(f"--batch {options.batch} is more than the {len(training)} training images: give a smaller one")
    first = next(iter(DataLoader(voc.Boxes(training[:2], classes), batch_size=2, collate_fn=voc.collate)))
    return classes, loader, test, first


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The whole program; returns the table's figures."""
    torch.manual_seed(options.seed)
    saved: dict[str, Any] = {}
    if options.evaluate:
        saved = edp_fx.load(options.evaluate).meta["edp_fx.recipe"]["extra"]
        options.classes = options.classes or saved["classes"]
    classes, loader, test, first = read(options)
    rows: dict[str, dict[str, float]] = {}

    if options.evaluate:
        model = build(saved["model"], len(saved["classes"]), saved["size"], options.regions, pretrained=False)
        parts = edp_fx.trace_parts(model, first)
        parts.put(edp_fx.load(options.evaluate))
        rows["saved"] = facts(model, parts, test)
        print(table(rows))
        return rows

    extra = {"model": options.model, "classes": list(classes), "size": options.size}
    for name in ("compressed",) if options.no_dense else ("compressed", "dense"):
        torch.manual_seed(options.seed)
        model = build(options.model, len(classes), options.size, options.regions, options.pretrained).to(options.device)
        parts = edp_fx.trace_parts(model, ([one.to(options.device) for one in first[0]], first[1]))
        compressed = name == "compressed"
        print(parts if compressed else "\nthe dense detector, trained alike:", flush=True)
        train(model, loader, options, parts if compressed else None)
        rows = {name: facts(model, parts, test), **rows}
        if compressed:
            edp_fx.save(parts.graph, options.out, parts.inputs, extra=extra)
    report = {**extra, "macs": options.macs, "epochs": options.epochs, "rows": rows}
    (options.out / "report.json").write_text(json.dumps(report, indent=1))
    print(table(rows))
    print(f"written: {options.out}")
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="directory with images/ and annotations/")
    made.add_argument("--classes", nargs="+", default=[], help="names; by themselves all that are annotated")
    made.add_argument("--model", default="ssdlite320_mobilenet_v3_large", help="torchvision's or yolo11n and its like")
    made.add_argument("--pretrained", action="store_true", help="start from ImageNet weights (a download)")
    made.add_argument("--size", type=int, default=320, help="shorter side of the images; of YOLO's the longer")
    made.add_argument("--regions", type=int, default=512, help="of an image that a two-stage detector learns from")
    made.add_argument("--macs", type=float, default=0.5, help="share of the MACs that stays")
    made.add_argument("--method", default=None, help="preset: scratch or trained")
    made.add_argument(
        "--removal", type=float, nargs=2, metavar=("START", "END"),
        help="shares of the run between which it removes; from random weights YOLO does better with 0.2 0.5",
    )  # fmt: skip
    made.add_argument("--epochs", type=int, default=60)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--lr", type=float, default=0.01)
    made.add_argument("--workers", type=int, default=0)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--no-dense", action="store_true", help="do not train the dense detector beside")
    made.add_argument("--out", type=Path, default=Path("small"))
    made.add_argument("--evaluate", type=Path, help="a directory written before: only its AP50")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run; a wrong use is one line and status 2."""
    try:
        run(parser().parse_args(arguments))
    except EdpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
