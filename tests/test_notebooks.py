"""The notebooks as they are committed: whole, executed in order, free of errors, and each claim told once."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebooks]'")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
RECORDS = sorted((FOLDER / "claims").glob("*.json"))
CLAIMS = [f"C{number}" for number in range(1, 24)]
VERDICTS = {"shown", "partly", "not shown"}
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|Users|usr|opt|mnt|work)/|[A-Z]:\\\\")
MOST_BYTES = 400_000


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_whole(path: Path) -> None:
    """Valid, executed from top to bottom, with outputs, without errors, and not large."""
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it whole: run.py --full"
    outputs = [output for cell in cells for output in cell.outputs]
    assert {"stream", "display_data"} <= {output.output_type for output in outputs}, "numbers and a figure"
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("path", [*NOTEBOOKS, *RECORDS], ids=lambda path: path.stem)
def test_no_path_of_a_machine_is_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(
            str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            for cell in code_cells(path)
            for output in cell.outputs
        )
    found = MACHINE.search(text)
    assert found is None, text[max(0, found.start() - 40) : found.end() + 40]


def test_every_claim_has_one_record() -> None:
    assert sorted((path.stem for path in RECORDS), key=CLAIMS.index) == CLAIMS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_what_its_notebook_measured(path: Path) -> None:
    row = json.loads(path.read_text(encoding="utf-8"))
    assert row["claim"] == path.stem and row["verdict"] in VERDICTS
    assert row["said"] and row["measured"] and row["numbers"]
    assert path.with_suffix(".png").is_file()
    source = "".join(cell.source for cell in code_cells(FOLDER / row["notebook"]))
    assert f'"{path.stem}"' in source, f"{row['notebook']} records no {path.stem}"


def test_the_table_of_the_readme_is_that_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    try:
        import claims

        readme = (FOLDER / "README.md").read_text(encoding="utf-8")
        assert f"\n{claims.table()}\n<!-- end of claims -->\n" in readme, (
            "write it: python notebooks/run.py --full NAME"
        )
    finally:
        sys.modules.pop("claims", None)
