"""torchvision's classification data sets that already lie on this machine."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edp_fx.data.base import Data, Reading
from edp_fx.data.images import transforms
from edp_fx.data.splitting import split_up
from edp_fx.errors import DataError, one_line
from edp_fx.extras import need


def torchvision_data(name: str, root: Path, how: Reading) -> Data:
    """A classification data set of torchvision that already lies in ``root`` (its own layout).

    Raises:
        DataError: no such data set, or it is not there.
    """
    need("data", f"--data torchvision:{name}", "torchvision")
    import torchvision.datasets

    kinds = {key.lower(): key for key in torchvision.datasets.__all__}
    if name.lower() not in kinds:
        near = difflib.get_close_matches(name.lower(), kinds, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(kinds[key] for key in near)}?" if near else ""
        raise DataError(f"--data torchvision:{name}: torchvision has no such data set{hint}")
    kind = getattr(torchvision.datasets, kinds[name.lower()])
    learn, judge = (_Rgb(one) for one in transforms(how))
    takes = inspect.signature(kind.__init__).parameters

    def build(part: str, transform: Any) -> Any:
        options: dict[str, Any] = {"transform": transform}
        if "train" in takes:
            options["train"] = part == "train"
        elif "split" in takes:
            options["split"] = part
        elif part != "train":
            return None
        return kind(str(root), **options)

    try:
        learned, train = build("train", learn), build("train", judge)
    except Exception as error:
        raise DataError(f"--data torchvision:{name}:{root}: {one_line(error)}; is the data there?") from error
    judged = {"train": train}
    for part in ("test", "val"):
        try:
            held = build(part, judge)
        except Exception:
            continue
        if held is not None:
            judged["test"] = held
            break
    labels = _labels(learned)
    named = getattr(learned, "classes", None)
    classes = tuple(map(str, named)) if named else tuple(map(str, range(int(labels.max()) + 1)))
    return split_up(f"torchvision:{name}:{root}", learned, judged, labels, classes, how)


class _Rgb:
    """Images of any mode as RGB, then the transform."""

    def __init__(self, transform: Callable[..., Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return self.transform(image.convert("RGB"))


def _labels(dataset: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "labels", "_labels", "_samples", "samples"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            if len(values) and isinstance(values[0], tuple):
                values = [value[-1] for value in values]
            return np.asarray(values).astype(np.int64)
    return np.asarray([int(dataset[index][1]) for index in range(len(dataset))])
