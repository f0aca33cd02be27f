"""The page: in a real browser its players play, its pictures are drawn and its table is full; nothing is fetched."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from latentdiff.evaluation.report import Page, difference, read_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PROBE = """<script>addEventListener("load", async () => {
  const sounds = [...document.querySelectorAll("audio")];
  await Promise.all(sounds.map(s => s.readyState ? 0 : new Promise(r => s.onloadedmetadata = s.onerror = r)));
  const drawn = [...document.querySelectorAll("img")].map(i => {
    const c = document.createElement("canvas"); c.width = i.naturalWidth; c.height = i.naturalHeight;
    const g = c.getContext("2d"); g.drawImage(i, 0, 0);
    return new Set(g.getImageData(0, 0, c.width, c.height).data).size; });
  const cells = [...document.querySelectorAll("#figures tbody tr")].map(r => r.cells[1].textContent.trim());
  document.title = JSON.stringify({seconds: sounds.map(s => s.duration), drawn, cells});
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_page_in_a_browser(evaluated: tuple[list[str], Path], tmp_path: Path) -> None:
    page = (evaluated[1] / "report.html").read_text()
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    probed = re.sub(policy, "", page).replace("</body>", f"{PROBE}</body>")  # the policy allows no script
    assert re.search(policy, page) and PROBE in probed
    (tmp_path / "page.html").write_text(probed)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=240)
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert title, done.stderr[-2000:]
    seen = json.loads(title[1])
    report = json.loads((evaluated[1] / "report.json").read_text())
    assert len(seen["seconds"]) == 9 and all(abs(s - 1.024) < 0.01 for s in seen["seconds"])  # 3 samples, 3 players
    assert len(seen["drawn"]) == 9 and min(seen["drawn"]) > 100  # levels of colour: more than axes on white
    assert len(seen["cells"]) == len(report["figures"]) and all(re.match(r"-?\d", cell) for cell in seen["cells"])


def test_the_page_needs_nothing_else(evaluated: tuple[list[str], Path]) -> None:
    page = (evaluated[1] / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)=["']?([^"'>]{0,30})""", page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "url(" not in page and "@import" not in page and "<script" not in page
    for sample in json.loads((evaluated[1] / "report.json").read_text())["samples"]:
        assert sample["prompt"] and sample["prompt"] in page


def report(evaluated: tuple[list[str], Path]) -> dict[str, Any]:
    return read_report(evaluated[1] / "report.json")


def test_what_comes_from_elsewhere_is_escaped(evaluated: tuple[list[str], Path], tmp_path: Path) -> None:
    values = report(evaluated)
    values["samples"][0]["prompt"] = "<script>alert(1)</script>"
    Page(values, evaluated[1]).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert" in page and "<script" not in page


def test_two_runs_side_by_side(evaluated: tuple[list[str], Path], tmp_path: Path) -> None:
    """Each prompt gets a player more; a figure of another test list is shown and said not to compare."""
    values, other = report(evaluated), report(evaluated)
    other["subject"]["name"] = "the other run"
    for figure in other["figures"]:
        if figure["name"] == "KL":
            figure["test_list"] = "0" * 64
        if figure["name"] == "KID":
            figure["value"] = 123.0
    Page(values, evaluated[1], (other, evaluated[1])).write(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<audio") == 12 and page.count("the other run: ") == 3
    assert page.count("not comparable: test list differ") == 1 and ">123<" in page


def test_difference_names_what_keeps_figures_apart(evaluated: tuple[list[str], Path]) -> None:
    figure = report(evaluated)["figures"][0]
    assert difference(figure, dict(figure)) == ""
    assert difference(figure, {**figure, "sampling_rate": 48000, "count": 5}) == "sampling rate, count"
