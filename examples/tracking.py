"""A SiamFC tracker on frames of one object, dense and compressed, trained alike.

    python examples/tracking.py --frames DIR --box 315 140 430 255 --macs 0.5 --steps 2000 --out small

DIR has the frames as ``*.jpg``, in the order of their names; ``--box`` is where the object is in the first one (x1, y1,
x2, y2 in pixels). One backbone sees the exemplar and the search region; the features of the one are compared with those
of the other as kernels, so both lose the same channels. Training needs no boxes: it finds places of a frame again,
moved and in another light, in the first three quarters of the frames. The dense tracker follows the object through all
of them. In the last quarter both start from its box, and the table says how far the compressed one's overlap with its
are.

L. Bertinetto et al., "Fully-Convolutional Siamese Networks for Object Tracking", 2016.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edp_fx
from edp_fx.compressor import Compressor, parameter_groups
from edp_fx.errors import DataError, EdpError, TrainingError
from edp_fx.parts import Parts

EXEMPLAR, SEARCH, STRIDE = 127, 255, 8  # pixels
CONTEXT = 0.5  # of the object's mean side, added around it
SCALES = (0.97, 1.0, 1.03)
WINDOW = 0.3  # how much a place near the last one counts
Box = tuple[float, float, float, float]


def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Correlation(nn.Module):
    """Each exemplar's features slide over those of its own region: [N, C, h, w] and [N, C, H, W] to [N, 1, ., .]."""

    def forward(self, exemplars: Tensor, regions: Tensor) -> Tensor:
        count, channels = regions.shape[:2]
        rows = regions.reshape(1, count * channels, *regions.shape[2:])
        return F.conv2d(rows, exemplars, groups=count).transpose(0, 1)


class SiamFC(nn.Module):
    """AlexNet without padding, used twice; ``width`` is a share of its channels."""

    def __init__(self, width: float) -> None:
        super().__init__()
        c1, c2, c3 = (max(8, round(width * channels)) for channels in (96, 256, 384))
        self.backbone = nn.Sequential(
            layer(3, c1, 11, 2), nn.MaxPool2d(3, 2), layer(c1, c2, 5), nn.MaxPool2d(3, 2),
            layer(c2, c3, 3), layer(c3, c3, 3), nn.Conv2d(c3, c2, 3),
        )  # fmt: skip
        self.correlation, self.adjust = Correlation(), nn.BatchNorm2d(1)

    def response(self, features: Tensor, regions: Tensor) -> Tensor:
        """Scores [N, 1, h, w] of exemplars whose features are known."""
        return self.adjust(self.correlation(features, self.backbone(regions)))

    def forward(self, exemplars: Tensor, regions: Tensor, places: list[tuple[int, int]]) -> Tensor:
        """The loss of pairs whose object is at ``places`` (row, column) of the response."""
        scores = self.response(self.backbone(exemplars), regions)
        wanted = torch.zeros_like(scores)
        for row, (y, x) in zip(wanted, places):
            row[0, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 1
        right = wanted.mean()
        weights = torch.where(wanted > 0, 0.5 / right, 0.5 / (1 - right))
        return F.binary_cross_entropy_with_logits(scores, wanted, weights)


def read_frames(directory: Path) -> list[Tensor]:
    """Frames [3, H, W] of 0..1. Raises DataError where there are too few, or one is unreadable or of another size."""
    from torchvision.io import ImageReadMode, decode_image

    files = sorted(directory.glob("*.jpg"))
    if len(files) < 8:
        raise DataError(f"{directory} has {len(files)} *.jpg: --frames takes a directory with the frames, 8 at least")
    frames = []
    for file in files:
        try:
            frames.append(decode_image(str(file), ImageReadMode.RGB).float() / 255)
        except RuntimeError as error:
            raise DataError(f"{file} cannot be read as an image: {error}") from error
        if frames[-1].shape != frames[0].shape:
            raise DataError(f"{file} is of another size than {files[0].name}: the frames are of one video")
    return frames


def check_box(box: Box, frame: Tensor) -> None:
    """Raise DataError where a box has no area, or is not in the frame."""
    (x1, y1, x2, y2), (height, width) = box, frame.shape[1:]
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise DataError(f"--box {x1:g} {y1:g} {x2:g} {y2:g} has no area in a frame of {width}x{height}")


def crop(frame: Tensor, center: tuple[float, float], side: float, size: int) -> Tensor:
    """A square of ``side`` pixels around (x, y), as [3, size, size]; outside of the frame is its mean colour."""
    height, width = frame.shape[1:]
    steps = (torch.arange(size) + 0.5) / size - 0.5
    x = (center[0] + side * steps) * 2 / width - 1
    y = (center[1] + side * steps) * 2 / height - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], 2)[None]
    mean = frame.mean((1, 2), keepdim=True)
    return (F.grid_sample((frame - mean)[None], grid, align_corners=False) + mean[None])[0]


def pairs(frames: list[Tensor], count: int, cells: int) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Places at random, and the same in another light, size and position in the response of so many cells a side."""
    exemplars, regions, places = [], [], []
    height, width = frames[0].shape[1:]
    for _ in range(count):
        frame = frames[int(torch.randint(len(frames), ()))]
        side = float(torch.empty(()).uniform_(0.25, 0.5)) * min(height, width)
        x, y = (float(torch.rand(())) * size for size in (width, height))
        row, column = (int(torch.randint(2, cells - 2, ())) for _ in range(2))
        pixel = side / EXEMPLAR
        moved = tuple(at - (cell - cells // 2) * STRIDE * pixel for at, cell in ((x, column), (y, row)))
        scale = float(torch.empty(()).uniform_(0.95, 1.05))
        region = crop(frame, moved, side * SEARCH / EXEMPLAR * scale, SEARCH)
        light = torch.empty(3, 1, 1).uniform_(0.8, 1.2)
        exemplars.append(crop(frame, (x, y), side, EXEMPLAR))
        regions.append((region * light + torch.randn_like(region) * 0.02).clamp(0, 1))
        places.append((row, column))
    return torch.stack(exemplars), torch.stack(regions), places


@torch.no_grad()
def track(model: SiamFC, frames: list[Tensor], box: Box) -> list[Box]:
    """The object's box in every frame, from that in the first one."""
    model.eval()
    x, y, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    around = CONTEXT * (w + h)
    side = ((w + around) * (h + around)) ** 0.5
    features = model.backbone(crop(frames[0], (x, y), side, EXEMPLAR)[None]).expand(len(SCALES), -1, -1, -1)
    found = [box]
    for frame in frames[1:]:
        area = side * SEARCH / EXEMPLAR
        regions = torch.stack([crop(frame, (x, y), area * scale, SEARCH) for scale in SCALES])
        scores = model.response(features, regions)[:, 0].sigmoid()
        cells = scores.shape[-1]
        window = torch.hann_window(cells + 2, periodic=False)[1:-1]
        scores = (1 - WINDOW) * scores + WINDOW * window[:, None] * window
        scores = scores * torch.tensor([0.98, 1.0, 0.98])[:, None, None]
        best, place = divmod(int(scores.argmax()), cells * cells)
        row, column = divmod(place, cells)
        pixel = area * SCALES[best] / SEARCH * STRIDE
        x, y = x + (column - cells // 2) * pixel, y + (row - cells // 2) * pixel
        grown = 1 + 0.6 * (SCALES[best] - 1)
        side, w, h = side * grown, w * grown, h * grown
        found.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return found


def overlap(ones: list[Box], others: list[Box]) -> float:
    """Mean intersection over union of boxes, frame by frame."""
    from torchvision.ops import box_iou

    return float(box_iou(torch.tensor(ones), torch.tensor(others)).diagonal().mean())


def train(model: SiamFC, frames: list[Tensor], options: argparse.Namespace, parts: Parts | None) -> None:
    """Train on pairs; the parts, where given, to their budget."""
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=options.lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps + 1, pct_start=0.1)
    compressor = None
    if parts is not None:
        compressor = Compressor(
            parts.graph, parts.inputs, macs=options.macs, optimizer=optimizer, total_steps=options.steps
        )
    model.train()
    losses: list[float] = []
    for step in range(1, options.steps + 1):
        loss = model(*pairs(frames, options.batch, options.cells))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if compressor is not None:
            compressor.step()
        losses.append(float(loss.detach()))
        if not losses[-1] < float("inf"):
            raise TrainingError(f"the loss is {losses[-1]} in step {step}: give a smaller --lr than {options.lr}")
        if step % options.every == 0 or step == options.steps:
            at = f", at {compressor.macs:.3f} of its MACs" if compressor is not None else ""
            mean = sum(losses[-options.every :]) / len(losses[-options.every :])
            print(f"step {step}/{options.steps}: loss {mean:.3f}{at}", flush=True)
    if compressor is not None:
        compressor.finish()
        print(f"pruning and merging changed the parts' outputs by at most {compressor.max_rel_diff:.1e} (relative)")


def build(options: argparse.Namespace, frames: list[Tensor]) -> tuple[SiamFC, Parts]:
    """A tracker with the seed's weights, and its parts; ``options`` learn how many cells a response has."""
    torch.manual_seed(options.seed)
    model = SiamFC(options.width)
    with torch.no_grad():
        first = torch.zeros(1, 3, EXEMPLAR, EXEMPLAR), torch.zeros(1, 3, SEARCH, SEARCH)
        options.cells = model.response(model.backbone(first[0]), first[1]).shape[-1]
    return model, edp_fx.trace_parts(model, pairs(frames, 2, options.cells))


def split(frames: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(training, held out), each in the video's order."""
    held = 3 * len(frames) // 4
    return frames[:held], frames[held:]


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The whole program; returns the table's figures."""
    frames = read_frames(options.frames)
    box: Box = tuple(options.box)
    check_box(box, frames[0])
    training, held = split(frames)
    _, untrained = build(options, frames)
    Compressor(untrained.graph, untrained.inputs, macs=options.macs)  # tells what cannot be reached before it trains
    rows: dict[str, dict[str, float]] = {}
    tracks: dict[str, list[Box]] = {}
    for name in ("dense", "compressed"):
        model, parts = build(options, frames)
        if name == "dense":
            print(parts)
        train(model, training, options, parts if name == "compressed" else None)
        if name == "dense":
            box = track(model, [*training, held[0]], box)[-1]
        tracks[name] = track(model, held, box)
        measured = edp_fx.measure(parts.graph, parts.inputs)
        rows[name] = {"MACs": measured.macs, "parameters": measured.params}
        rows[name]["overlap"] = overlap(tracks["dense"][1:], tracks[name][1:])
    edp_fx.save(parts.graph, options.out, parts.inputs, extra={"width": options.width})
    (options.out / "report.json").write_text(json.dumps({"rows": rows, "tracks": tracks}, indent=1))
    print(f"{'':12}{'MACs':>12}{'parameters':>14}{'overlap':>10}")
    for name, row in rows.items():
        macs, params = f"{row['MACs'] / 1e6:.1f} M", f"{row['parameters'] / 1e6:.2f} M"
        print(f"{name:12}{macs:>12}{params:>14}{row['overlap']:>10.3f}")
    print(f"written: {options.out}")
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--frames", type=Path, required=True)
    made.add_argument("--box", type=float, nargs=4, required=True, metavar=("X1", "Y1", "X2", "Y2"))
    made.add_argument("--macs", type=float, default=0.5)
    made.add_argument("--width", type=float, default=0.5, help="share of AlexNet's channels")
    made.add_argument("--steps", type=int, default=2000)
    made.add_argument("--batch", type=int, default=8)
    made.add_argument("--lr", type=float, default=0.01)
    made.add_argument("--every", type=int, default=100, help="steps between lines")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("small"))
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
