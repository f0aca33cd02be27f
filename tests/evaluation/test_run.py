"""Whole evaluations from the command line: of the bundled model, of folders, of pictures, by two processes."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentdiff.cli import main
from latentdiff.evaluation.registry import METRICS, MODEL_METRICS
from latentdiff.evaluation.run import without_times
from latentdiff.names import METRIC_NAMES
from tests.evaluation.conftest import write_sounds
from tests.training.child import run_as_two


def report_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text())


def figures_of(output: Path) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figure in report_of(output)["figures"]}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_names_are_those_of_the_registry() -> None:
    assert {*METRICS, *MODEL_METRICS} == set(METRIC_NAMES)


def test_the_same_evaluation_gives_the_same_report(evaluated: tuple[list[str], Path], tmp_path: Path) -> None:
    command, first = evaluated
    assert main([*command, "-o", str(tmp_path / "second")]) == 0
    one, other = report_of(first), report_of(tmp_path / "second")
    assert one["times"] and without_times(one) == without_times(other)


def test_every_figure_carries_what_made_it(evaluated: tuple[list[str], Path]) -> None:
    report, found = report_of(evaluated[1]), figures_of(evaluated[1])
    assert {"KID", "KL", "IS", "precision", "coverage", "nearest p5", "judge accuracy"} <= set(found)
    for figure in report["figures"]:
        low, high = figure["interval"]
        assert low <= high and figure["count"] > 0 and figure["seed"] == 7
        assert figure["caption_rule"] == "the first wording of each file" and "soxr" in figure["resampler"]
        assert len(figure["test_list"]) == len(figure["reference_list"]) == 64
        if figure["metric"] not in MODEL_METRICS:
            assert len(figure["extractor_hash"]) == 64 and figure["sampling_rate"] == 16000
        if figure["metric"] not in (*MODEL_METRICS, "kl"):  # so few real media may have no two of the same names
            assert figure["floor"]["interval"][0] <= figure["floor"]["interval"][1]
    assert found["judge accuracy"]["floor"]["value"] > 0.7  # the judge knows real renders
    assert found["round trip log-mel L1"]["value"] < 1
    (total,) = [one for name, one in found.items() if name.startswith("nll bits/dim in latent space")]
    terms = sum(found[f"nll {term}"]["value"] for term in ("L_T", "L_t-1", "L_0"))
    assert total["value"] == pytest.approx(terms) and total["interval"][0] < total["value"]
    (left_out,) = [one for one in report["left_out"] if one["metric"] == "frechet"]
    assert "at least 65" in left_out["reason"]


def test_a_stopped_run_goes_on_with_what_it_has(evaluated: tuple[list[str], Path], tmp_path: Path) -> None:
    command, first = evaluated
    again = tmp_path / "again"
    shutil.copytree(first, again)
    (again / "report.json").unlink()
    kept = stamps(again / "features")
    gone = next(iter(sorted(kept)))
    Path(gone).unlink()
    assert main([*command, "-o", str(again)]) == 0
    now = stamps(again / "features")
    assert set(now) == set(kept) and {name for name in kept if now[name] != kept[name]} == {gone}
    assert without_times(report_of(again)) == without_times(report_of(first))


def test_its_media_as_a_folder_get_the_same_figures(
    evaluated: tuple[list[str], Path], bank: Path, tiny_clap: Path, tmp_path: Path
) -> None:
    """They pair by the prompt that each file carries; and two extractors look at them at once."""
    (made,) = (evaluated[1] / "generated").iterdir()
    command = ["evaluate", str(made), "--data", str(bank), "--bootstrap", "20", "--keep-faulty", "--extractor"]
    judge = Path(sys.modules["latentdiff"].__file__ or "").parent / "starter/judge"
    assert main([*command, str(judge), "--extractor", str(tiny_clap), "-o", str(tmp_path / "out")]) == 0
    model, folder = figures_of(evaluated[1]), figures_of(tmp_path / "out")
    for name in ("judge accuracy", "KL"):
        # The clips are judged in other batches, which changes the last digits on some processors.
        assert folder[name]["value"] == pytest.approx(model[name]["value"], rel=1e-6), name
    assert -1 <= folder["CLAP score"]["value"] <= 1 and folder["CLAP score"]["count"] == 6
    fad = [one for one in report_of(tmp_path / "out")["figures"] if one["metric"] == "kid"]
    assert len({one["extractor_hash"] for one in fad}) == 2


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder, rng, lines = tmp_path / "pictures", np.random.default_rng(0), []
    folder.mkdir()
    for i in range(16):
        name = ("dog", "cat")[i % 2]
        Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a {name}", "sources": [name]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_pictures(pictures: Path, looker: Path, tiny_image_pipeline: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(tiny_image_pipeline), "--data", str(pictures), "--extractor", str(looker)]
    assert main([*command, "--bootstrap", "20", "-o", str(tmp_path / "out")]) == 0
    found, page = figures_of(tmp_path / "out"), (tmp_path / "out/report.html").read_text()
    assert {"KID", "judge accuracy", "round trip PSNR"} <= set(found) and "FAD" not in found
    assert report_of(tmp_path / "out")["made"]["formats"] == {"32 x 32": 8}
    assert 'class="picture"' in page and "<audio" not in page


@pytest.mark.usefixtures("one_thread")
def test_two_processes_find_what_one_does(sounds: Path, tmp_path: Path) -> None:
    """Of a model, which they share the generating of too."""
    command = ["evaluate", "starter-audio", "--data", str(sounds), "--metrics", "kid,kl,judge", "--bootstrap", "20"]
    command += ["--steps", "2", "-d", "0.5", "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "one")]) == 0
    said = run_as_two([*command, "-o", str(tmp_path / "two")], tmp_path)
    assert without_times(report_of(tmp_path / "one")) == without_times(report_of(tmp_path / "two"))
    assert sum("report.html" in one for one in said) == 1  # the other one was there, and left writing to the first


def test_paired_by_name(sounds: Path, tmp_path: Path) -> None:
    """Against themselves, the pairs agree in full, and what pairs with the reference is left out."""
    shutil.copytree(sounds, tmp_path / "made")
    (tmp_path / "made/metadata.jsonl").unlink()
    command = ["evaluate", str(tmp_path / "made"), "--data", str(sounds), "--metrics", "kl,nearest"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    found = figures_of(tmp_path / "out")
    assert found["KL"]["value"] == 0 and found["KL"]["count"] == 10 and found["KL"]["floor"]["value"] > 0
    assert found["nearest p5"]["value"] == found["nearest p5"]["floor"]["value"] > 0


@pytest.mark.parametrize("count", [18, 10])
def test_a_figure_and_its_floor_are_of_one_count(count: int, sounds: Path, tiny_clap: Path, tmp_path: Path) -> None:
    """Fewer media than real ones: the floor is taken of as many, and where these are too few, it is said."""
    made = write_sounds(tmp_path / "made", count, 1, "other")
    (made / "metadata.jsonl").unlink()
    reference = write_sounds(tmp_path / "reference", 20, 2)
    command = ["evaluate", str(made), "--data", str(sounds), "--reference", str(reference), "--bootstrap", "20"]
    command += ["--extractor", str(tiny_clap), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    found = figures_of(tmp_path / "out")
    assert found["KID"]["count"] == found["KID"]["floor"]["count"] == count
    if count > 16:
        assert found["FAD"]["count"] == found["FAD"]["floor"]["count"] == count
    else:
        reasons = [one["reason"] for one in report_of(tmp_path / "out")["left_out"] if one["metric"] == "frechet"]
        assert "FAD" not in found and "at least 17 media to judge and there are 10" in reasons[0]
