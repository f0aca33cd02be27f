"""Run the notebooks.

python notebooks/run.py                     every cell of all, in a fast mode whose numbers mean nothing (CI)
python notebooks/run.py --full 03_digits    measured for real, written into the notebook, its claims and the table
"""

import argparse
import os
import time
from pathlib import Path

import nbformat
from claims import HERE, table
from nbclient import NotebookClient

BEGIN, END = "<!-- claims: notebooks/run.py --full writes this table -->\n", "<!-- end of claims -->"


def run(path: Path, full: bool) -> None:
    """Execute one notebook in its own folder; only a full run's outputs are written back."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(HERE)}}
    NotebookClient(notebook, timeout=None if full else 600, kernel_name="python3", resources=resources).execute()
    if full:
        for cell in notebook.cells:  # times of this run, and warnings that name paths of this machine
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata.pop("language_info", None)
        nbformat.write(notebook, path)


def write_table() -> None:
    """Put the recorded claims between the marks of README.md."""
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; all if none is named")
    parser.add_argument("--full", action="store_true", help="measure, and write outputs, claims and table")
    options = parser.parse_args()
    os.environ["LATENTDIFF_NOTEBOOKS"] = "full" if options.full else "fast"
    paths = [HERE / f"{name}.ipynb" for name in options.names] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        begun = time.perf_counter()
        run(path, options.full)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s", flush=True)
    if options.full:
        write_table()
