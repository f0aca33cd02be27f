"""One claim of the source texts, measured by a notebook: a row of the table in README.md, with its figure."""

import json
import os
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

HERE = Path(__file__).parent
FULL = os.environ.get("LATENTDIFF_NOTEBOOKS") == "full"
"""Whether to measure (hours on two cores, resumable) or only to see that every cell runs (a minute a notebook)."""
RUNS = HERE.parent / "runs" / "notebooks" / ("full" if FULL else "fast")
"""Where notebooks train: a run that is there already is gone on with, so a stopped notebook loses nothing."""


def record(
    claim: str,
    said: str,
    measured: str,
    verdict: Literal["shown", "partly", "not shown"],
    notebook: str,
    figure: Figure,
    numbers: dict[str, object],
) -> None:
    """Keep what a full run measured, as ``claims/C13.json`` and ``claims/C13.png``; a fast run leaves both alone.

    Args:
        claim: its number in the table, ``C13``.
        said: the claim, in a sentence.
        measured: what came out, with seeds, size and spread, in a sentence or two.
        verdict: whether it came out as claimed.
        notebook: the file name of the notebook that calls this.
        figure: its plot.
        numbers: everything that the sentence is made from, by name.
    """
    if not FULL:
        return
    row = {"claim": claim, "said": said, "measured": measured, "verdict": verdict, "notebook": notebook}
    text = json.dumps({**row, "numbers": numbers}, indent=1, ensure_ascii=False)
    (HERE / "claims" / f"{claim}.json").write_text(text + "\n", encoding="utf-8")
    figure.savefig(HERE / "claims" / f"{claim}.png", dpi=80, bbox_inches="tight")


def table() -> str:
    """All recorded rows, as Markdown."""
    paths = sorted((HERE / "claims").glob("C*.json"), key=lambda path: int(path.stem[1:]))
    lines = ["| # | claim | measured | as claimed? | figure |", "|---|---|---|---|---|"]
    for row in (json.loads(path.read_text(encoding="utf-8")) for path in paths):
        where = f"[{row['notebook'].removesuffix('.ipynb')}]({row['notebook']})"
        plot = f"[{row['claim']}](claims/{row['claim']}.png), {where}"
        cells = (row["claim"], row["said"], row["measured"], row["verdict"], plot)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
