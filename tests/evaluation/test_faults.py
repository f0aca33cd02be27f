"""Bad input of an evaluation: one sentence, exit code 2, and the features so far are kept."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from latentdiff.cli import main
from tests.evaluation.conftest import RATE, write_sounds

Fault = Callable[[Path, Path], list[str]]


def replaced(folder: Path, number: int, wave: np.ndarray, rate: int = RATE) -> list[str]:
    soundfile.write(folder / f"clip-{number}.wav", wave, rate)
    return []


def emptied(made: Path, real: Path) -> list[str]:
    for path in made.iterdir():
        path.unlink()
    return []


def without_captions(made: Path, real: Path) -> list[str]:
    (real / "metadata.jsonl").unlink()
    return []


def one_sample(made: Path, real: Path) -> list[str]:
    lines = (real / "metadata.jsonl").read_text().splitlines()
    (real / "metadata.jsonl").write_text(lines[0] + "\n")
    return []


def one_made(made: Path, real: Path) -> list[str]:
    (made / "metadata.jsonl").write_text(json.dumps({"file_name": "clip-0.wav", "text": "a piano"}) + "\n")
    return []


def all_silent(made: Path, real: Path) -> list[str]:
    for number in range(12):
        replaced(made, number, np.zeros(RATE // 2))
    return ["--keep-faulty"]


def some_silent(made: Path, real: Path) -> list[str]:
    return replaced(made, 2, np.zeros(RATE // 2))  # which is among the half that is asked for


def some_pair(made: Path, real: Path) -> list[str]:
    (made / "metadata.jsonl").unlink()
    (made / "clip-3.wav").rename(made / "foreign.wav")
    return []


def cut(made: Path, real: Path) -> list[str]:
    data = (real / "clip-5.wav").read_bytes()
    (real / "clip-5.wav").write_bytes(data[: len(data) // 2])
    return []


FAULTS: dict[str, tuple[Fault, str]] = {
    "empty folder": (emptied, "0 file(s)"),
    "no captions": (without_captions, "no captions"),
    "one real sample": (one_sample, "at least 4"),
    "one made sample": (one_made, "at least 2"),
    "mixed rates": (lambda made, real: replaced(real, 2, np.full(4000, 0.1), 8000), "mix sampling rates"),
    "a silent file": (some_silent, "1 of 6 files of the generated media are silent, the first is"),
    "a clipped file": (lambda made, real: replaced(real, 2, np.ones(8000)), "clipped"),
    "all silent": (all_silent, "files of the generated media are silent; no figure"),
    "a broken file": (cut, "clip-5.wav"),
    "a missing extractor": (lambda made, real: ["--extractor", "nowhere"], "there is no extractor at 'nowhere'"),
    "mismatched pairs": (some_pair, "1 of 12 files"),
    "no pairs for KL": (lambda made, real: [str(made / "metadata.jsonl"), "kl"], "no media pairs"),
    "more than there are": (lambda made, real: ["--count", "99"], "--count is 99"),
    "a common file": (lambda made, real: ["--reference", str(real)], "are in"),
    "CLAP score by a judge": (lambda made, real: ["--metrics", "clap"], "takes an extractor that embeds captions"),
    "too few for a covariance": (lambda made, real: ["--metrics", "frechet"], "at least 65"),
    "round trip of files": (lambda made, real: ["--metrics", "round_trip"], "takes a model"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_one_sentence_and_exit_code_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, real = write_sounds(tmp_path / "made", 12, 1), write_sounds(tmp_path / "real", 12, 2)
    fault, said = FAULTS[case]
    more = fault(made, real)
    if more[1:] == ["kl"]:  # other captions than those of the data, under other names
        Path(more[0]).write_text("".join(
            json.dumps({"file_name": f"{i}.wav", "text": "a dog"}) + "\n"
            for i in range(12) if (made / f"clip-{i}.wav").rename(made / f"{i}.wav")
        ))  # fmt: skip
        more = ["--metrics", "kl"]
    output = tmp_path / "out"
    capsys.readouterr()
    code = main(["evaluate", str(made), "--data", str(real), "--bootstrap", "20", "-o", str(output), *more])
    error = capsys.readouterr().err
    sentences = [line for line in error.splitlines() if line.startswith("latentdiff: ")]
    assert code == 2 and len(sentences) == 1 and said in sentences[0], error
    assert not (output / "report.json").exists() and not (output / "report.html").exists()


def test_features_so_far_are_kept(sounds: Path, tmp_path: Path) -> None:
    made = write_sounds(tmp_path / "made", 20, 1)
    command = ["evaluate", str(made), "--data", str(sounds), "--bootstrap", "20", "-o", str(tmp_path / "out")]
    assert main([*command, "--metrics", "frechet"]) == 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/features").iterdir()}
    assert kept
    assert main([*command, "--metrics", "kid"]) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_a_report_is_not_replaced_unasked(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    command = ["evaluate", str(sounds), "--data", str(sounds), "-o", str(tmp_path)]
    assert main(command) == 2 and (tmp_path / "report.json").read_text() == "{}"
    assert main([*command, "--overwrite", "--against", str(tmp_path / "report.json")]) == 2  # {} is no report
