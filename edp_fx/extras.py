"""What is installed on demand: the packages behind each extra, and the one line that names a missing one."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

from edp_fx.errors import MissingExtraError

EXTRAS = {  # extra -> the modules that it installs
    "models": ("timm", "torchvision"),
    "train": ("accelerate", "timm"),
    "data": ("PIL", "sklearn", "timm", "torchvision"),
    "lower": ("onnx", "onnxscript", "onnxruntime"),
}
_PROJECTS = {"sklearn": "scikit-learn", "PIL": "Pillow"}  # where pip calls a module by another name


def need(extra: str, what: str, *modules: str) -> None:
    """Raise where a package is missing that ``what`` is done with; call it before the import.

    Args:
        extra: one of ``EXTRAS``.
        what: what cannot be done without, as the message begins.
        modules: of the extra; all of them where none is named.

    Raises:
        MissingExtraError: names the first that is not installed, and the command that installs it. A package that is
            there and fails raises its own error.
    """
    for module in modules or EXTRAS[extra]:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != module:
                raise
            name = _PROJECTS.get(module, module)
            raise MissingExtraError(f"{what} needs {name}: pip install 'edp_fx[{extra}]'") from error


def installed_version(project: str) -> str | None:
    """The version that is installed, None for none."""
    try:
        return version(project)
    except PackageNotFoundError:
        return None
