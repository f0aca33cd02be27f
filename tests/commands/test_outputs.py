"""Which files a command line writes."""

from pathlib import Path

import pytest

from latentdiff.commands.outputs import plan_grid, plan_outputs, slug
from latentdiff.errors import InputError


def names(files: list[Path]) -> list[str]:
    return [file.name for file in files]


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("Dog barking", "dog-barking"),
        ("a/../b\\c: d?", "a-b-c-d"),
        ("  ...  ", "clip"),
        ("\N{DOG FACE}", "clip"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE} noise", "caf\N{LATIN SMALL LETTER E WITH ACUTE}-noise"),
        ("x" * 500, "x" * 40),
        ("-rf", "rf"),
    ],
)
def test_slug(prompt: str, stem: str) -> None:
    assert slug(prompt) == stem


def test_a_fresh_name_is_chosen_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan_outputs(None, ["dog barking"], 1, False, False) == [Path("dog-barking.wav")]
    Path("dog-barking.wav").touch()
    Path("dog-barking-3.png").touch()
    assert names(plan_outputs(None, ["dog barking"], 2, False, False)) == [
        "dog-barking-2.wav",
        "dog-barking-3.wav",
    ]
    assert names(plan_outputs(None, ["dog barking"], 2, False, plot=True)) == [
        "dog-barking-2.wav",
        "dog-barking-4.wav",
    ]
    assert names(plan_outputs(None, ["dog barking"], 1, True, False)) == ["dog-barking.wav"]


def test_prompts_with_the_same_words_do_not_collide(tmp_path: Path) -> None:
    files = plan_outputs(str(tmp_path), ["a dog", "A dog!", "a cat"], 2, False, False)
    assert names(files) == [
        "a-dog.wav",
        "a-dog-2.wav",
        "a-dog-3.wav",
        "a-dog-4.wav",
        "a-cat.wav",
        "a-cat-2.wav",
    ]


def test_several_clips_of_one_file_name_are_numbered(tmp_path: Path) -> None:
    files = plan_outputs(str(tmp_path / "new" / "x.flac"), ["a", "b"], 2, False, False)
    assert names(files) == ["x-1.flac", "x-2.flac", "x-3.flac", "x-4.flac"]
    assert list(tmp_path.iterdir()) == []  # the folder is made when the first clip is there
    files[3].parent.mkdir()
    files[3].touch()
    with pytest.raises(InputError, match=r"x-4\.flac exists"):
        plan_outputs(str(tmp_path / "new" / "x.flac"), ["a", "b"], 2, False, False)
    assert len(plan_outputs(str(tmp_path / "new" / "x.flac"), ["a", "b"], 2, True, False)) == 4


def test_a_folder_is_told_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    for folder in ("v1.2", "new.d/", "plain"):
        (file,) = plan_outputs(f"{tmp_path}/{folder}", ["rain"], 1, False, False)
        assert file == tmp_path / folder / "rain.wav"


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "x.wav").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists"):
        plan_outputs(str(tmp_path / "x.wav"), ["rain"], 1, False, False)


PNG = (".png",)


def test_pictures_get_the_suffix_of_their_medium(tmp_path: Path) -> None:
    folder = f"{tmp_path}/"
    assert names(plan_outputs(folder, ["a dog"], 2, False, False, PNG)) == ["a-dog.png", "a-dog-2.png"]
    assert names(plan_outputs(f"{tmp_path}/x.PNG", ["a dog"], 1, False, False, PNG)) == ["x.PNG"]
    for output, suffixes, words in (
        ("x.wav", PNG, r"must end in \.png; a folder"),
        ("x.jpg", PNG, r"must end in \.png; a folder"),
        ("x.png", (".wav", ".flac"), r"must end in \.wav, \.flac; a folder"),
    ):
        with pytest.raises(InputError, match=words):
            plan_outputs(f"{tmp_path}/{output}", ["a dog"], 1, False, False, suffixes)


def test_the_grid_is_named_after_the_file_or_the_first_prompt(tmp_path: Path) -> None:
    assert plan_grid(f"{tmp_path}/x.png", ["a dog"], False, []) == tmp_path / "x-grid.png"
    (tmp_path / "x-grid.png").touch()
    with pytest.raises(InputError, match=r"x-grid\.png exists"):
        plan_grid(f"{tmp_path}/x.png", ["a dog"], False, [])
    assert plan_grid(f"{tmp_path}/x.png", ["a dog"], True, []) == tmp_path / "x-grid.png"
    assert plan_grid(str(tmp_path), ["a dog", "a cat"], False, []) == tmp_path / "a-dog-grid.png"
    (tmp_path / "a-dog-grid.png").touch()
    assert plan_grid(str(tmp_path), ["a dog", "a cat"], False, []) == tmp_path / "a-dog-grid-2.png"
    chosen = [tmp_path / "a-dog-grid-2.png"]  # of the prompt "a dog grid"
    assert plan_grid(str(tmp_path), ["a dog", "a dog grid"], False, chosen) == tmp_path / "a-dog-grid-3.png"
