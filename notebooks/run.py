"""``python -m notebooks.run [FILE ...]``: run notebooks, all where none is named, and keep their outputs in them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Run and write them."""
    chosen = [Path(name) for name in sys.argv[1:]]
    for path in chosen or sorted(Path(__file__).parent.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it was run
            if cell.cell_type == "code":  # warnings are of the machine
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)}
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main()
