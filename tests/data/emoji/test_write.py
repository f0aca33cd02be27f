"""The written folders: whole, ordinary, the same each time, and nothing of the held-out part in training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.data.emoji import draw as draw_module
from latentdiff.data.emoji import write as write_module
from latentdiff.data.emoji.catalogue import Emoji, catalogue
from latentdiff.data.emoji.draw import SIDE, EmojiFont
from latentdiff.data.emoji.write import drawable, write_emoji
from latentdiff.data.folder import read_folder
from latentdiff.data.scan import scan_folder
from latentdiff.errors import InputError


@pytest.fixture(scope="module")
def font() -> EmojiFont:
    try:
        return EmojiFont()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(font: EmojiFont, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("emoji") / "out"
    counts = write_emoji(out, 24, 0)
    assert counts["train"] > 3200 and 150 <= counts["held_out"] <= 200
    return out


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_both_folders_are_ordinary_ones(folder: Path) -> None:
    report = scan_folder(folder / "train")
    assert not report.faults and report.sizes == {"24 x 24": len(report.rows)} and report.modes.keys() == {"RGBA"}
    rows = read_folder(folder / "held_out")
    assert all(len(row.captions) >= 5 and dict(row.attributes).keys() > {"gender", "skin_tone"} for row in rows)


def test_training_sees_nothing_that_is_held_out(folder: Path) -> None:
    facts = json.loads((folder / "held_out.json").read_text())
    cells = {tuple(cell.values()) for cell in facts["combinations"]}
    held_out, train = lines(folder / "held_out"), lines(folder / "train")
    keys = ("base", "gender", "skin_tone")
    assert {tuple(line["attributes"][key] for key in keys) for line in held_out} == cells
    assert not cells & {tuple(line["attributes"].get(key) for key in keys) for line in train}
    assert {line["split"] for line in train} == {"train"} and {line["split"] for line in held_out} == {"held_out"}
    captions = {text for line in train for text in line["text"]}
    assert not captions & {text for line in held_out for text in line["text"]}
    pictures = {(folder / "train" / line["file_name"]).read_bytes() for line in train}
    assert not pictures & {(folder / "held_out" / line["file_name"]).read_bytes() for line in held_out}


def test_all_pictures_differ_and_show_something(folder: Path) -> None:
    pixels = {np.asarray(Image.open(path)).tobytes() for path in folder.glob("*/pictures/*.png")}
    count = len(list(folder.glob("*/pictures/*.png")))
    assert len(pixels) > 0.995 * count  # at 24 x 24 a few small differences are lost
    assert all(np.frombuffer(picture, np.uint8)[3::4].max() > 200 for picture in pixels)


def test_sequences_are_one_picture(font: EmojiFont) -> None:
    """Drawn part by part, a woman and a rocket would stand side by side."""
    names = {one.name: one for one in catalogue()}
    astronaut, woman = (font.draw(names[name].text) for name in ("woman astronaut", "woman"))
    assert astronaut is not None and woman is not None and astronaut.size == (SIDE, SIDE)
    assert np.abs(np.asarray(astronaut).astype(int) - np.asarray(woman)).mean() > 5
    assert font.draw("\U0001f469\u200d\U0001f415") is None  # a woman who is a dog: two glyphs
    assert font.draw("\U000e0041") is None  # no glyph at all


def test_of_equal_pictures_the_shortest_name_stays(font: EmojiFont) -> None:
    dog = Emoji("\U0001f415", "dog", "dog", None, (), False, ())
    twin = Emoji("\U0001f415", "dog dark skin tone", "dog", None, ("dark",), True, ())
    assert [one.name for one, _ in drawable(font, [twin, dog])] == ["dog"]
    snowboarders = [one for one in catalogue() if one.base == "snowboarder"]
    assert len(snowboarders) == 6 and len(list(drawable(font, snowboarders))) == 1


def test_the_same_seed_gives_the_same_bytes(font: EmojiFont, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [one for one in catalogue() if one.base in ("astronaut", "volcano")]
    monkeypatch.setattr(write_module, "catalogue", lambda: few)
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 2)):
        write_emoji(tmp_path / name, 16, seed)
        written.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert written[0] == written[1] != written[2]


def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    for out, size, seed, words in (
        ("new", 7, 0, "--size is 7"),
        ("new", 137, 0, "from 8 to 136"),
        ("new", 64, -1, "--seed is -1"),
        ("full", 64, 0, "is not empty"),
        ("full/a", 64, 0, "is a file"),
    ):
        with pytest.raises(InputError, match=words):
            write_emoji(tmp_path / out, size, seed)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "full"]


def test_a_write_that_breaks_leaves_nothing(font: EmojiFont, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(write_module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_emoji(tmp_path / "out", 16, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_font_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_module, "_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(draw_module, "FONT_NAME", "NoSuchFont.ttf")
    with pytest.raises(InputError, match="apt-get install fonts-noto-color-emoji"):
        EmojiFont()


def test_missing_raqm_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_module.features, "check", lambda name: False)
    with pytest.raises(InputError, match="apt-get install libraqm0"):
        EmojiFont()
