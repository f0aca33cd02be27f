"""A file of prompts by many processes: each prompt once, the same files as by one, and a stopped run goes on."""

from pathlib import Path

import pytest

from latentdiff.cli import main
from latentdiff.commands import generate as verb
from latentdiff.commands.generate import generate
from latentdiff.commands.outputs import plan_outputs
from latentdiff.commands.request import MAX_FILES
from latentdiff.errors import InputError
from tests.commands.test_generate import NoisePipe, request
from tests.training.child import run_as_two


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> NoisePipe:
    stand_in = NoisePipe()
    monkeypatch.setattr(verb, "load_pipeline", lambda request: stand_in)
    (tmp_path / "model_index.json").write_text('{"_class_name": "TextToAudioPipeline"}')
    return stand_in


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("one_thread")
def test_two_processes_write_the_files_of_one(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Real processes; the first of them begins where a run was cut off."""
    prompts = [f"dog number {i}" for i in range(8)] + ["rain", "Rain!", "rain"]  # two batches; three names of one stem
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    arguments = ["generate", "--prompts", str(tmp_path / "prompts.txt"), "-m", str(tiny_pipeline), "--device", "cpu",
                 "--seed", "5", "-d", "0.2", "--steps", "2"]  # fmt: skip
    assert main([*arguments, "-o", f"{tmp_path}/one/"]) == 0
    one = contents(tmp_path / "one")
    assert len(one) == 11 and "rain-3.wav" in one
    (tmp_path / "two").mkdir()
    for name in ("dog-number-0.wav", "dog-number-5.wav"):
        (tmp_path / "two" / name).write_bytes(one[name])
    kept = (tmp_path / "two" / "dog-number-5.wav").stat().st_mtime_ns
    said = run_as_two([*arguments, "--resume", "-o", f"{tmp_path}/two/"], tmp_path)
    assert contents(tmp_path / "two") == one
    assert (tmp_path / "two" / "dog-number-5.wav").stat().st_mtime_ns == kept
    assert sum(one.count("seed") for one in said) == 9  # each of the missing ones was made once


def test_what_is_there_is_not_made_again(pipe: NoisePipe, tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in range(20)]
    generate(request(tmp_path, *prompts, seed=1, resume=True, plot=True))
    whole = contents(tmp_path / "out")
    pipe.batches.clear()
    generate(request(tmp_path, *prompts, seed=1, resume=True, plot=True))
    assert pipe.batches == []
    (tmp_path / "out" / "p9.wav").unlink()
    (tmp_path / "out" / "p10.png").unlink()  # killed between a sound and its picture
    generate(request(tmp_path, *prompts, seed=1, resume=True, plot=True))
    assert [len(batch) for batch in pipe.batches] == [8] and contents(tmp_path / "out") == whole


def test_each_process_takes_its_batches(
    pipe: NoisePipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = [f"p{i}" for i in range(30)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    taken = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        pipe.batches.clear()
        generate(request(tmp_path, *prompts, seed=1, resume=True))
        taken.append([batch[0] for batch in pipe.batches])
    assert taken == [["p0", "p24"], ["p8"], ["p16"]] and len(contents(tmp_path / "out")) == 30
    with pytest.raises(InputError, match="several processes share a request only with --resume"):
        generate(request(tmp_path, *prompts, seed=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 2}, "seed is 1 and not 2"), ({"steps": 3}, "steps is 20 and not 3"), ({"negative": "x"}, "negative")],
)
def test_files_of_another_request_are_not_taken_for_its_own(
    pipe: NoisePipe,
    tmp_path: Path,
    change: dict[str, object],
    words: str,
) -> None:
    generate(request(tmp_path, "a", seed=1, resume=True))
    with pytest.raises(InputError, match=rf"a\.wav exists and is not of this request: .*{words}"):
        generate(request(tmp_path, "a", resume=True, **{"seed": 1, **change}))


def test_what_does_not_go_together(pipe: NoisePipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume needs a --seed"):
        generate(request(tmp_path, "a", resume=True))
    with pytest.raises(InputError, match="give one of the two"):
        generate(request(tmp_path, "a", resume=True, overwrite=True, seed=1))


def test_names_of_very_many_prompts_are_found_in_time(tmp_path: Path) -> None:
    """Trying all names from the first for each of them would take hours."""
    files = plan_outputs(str(tmp_path), ["rain"] * 20_000, 1, True, False)
    assert files[-1].name == "rain-20000.wav" and len(set(files)) == 20_000 < MAX_FILES
