"""Pictures: every kind of file that people have, every fault by name, and the exact way to x and back."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff.config import Framing
from latentdiff.errors import InputError
from latentdiff.media.image import (
    BrokenImageError,
    Sheet,
    from_x,
    inspect_image,
    read_image,
    read_png_recipe,
    to_pictures,
    to_x,
    write_png,
)

SQUARE = Framing(size=16)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header_bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(path: Path, image: Image.Image, **options: object) -> bytes:
    image.save(path, **options)
    return path.read_bytes()


# ---------------------------------------------------------------- x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pixels_come_back_exactly(dtype: torch.dtype) -> None:
    """Half precision too, since that is what the latent cache keeps of pixels."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, -1, -1)
    x = to_x(pixels)
    assert x.dtype == torch.float32 and (x.min(), x.max()) == (-1.0, 1.0)
    assert torch.equal(from_x(x.to(dtype)), pixels)


def test_what_lies_beyond_white_and_black_is_clipped() -> None:
    assert from_x(torch.tensor([-7.0, -1.001, 1.001, 9.0])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_comes_back_exactly_through_x(tmp_path: Path, channels: int) -> None:
    pixels = noise(channels=channels)
    (picture,) = to_pictures(torch.from_numpy(pixels.transpose(2, 0, 1))[None])
    write_png(tmp_path / "a.png", picture)
    read = read_image(tmp_path / "a.png", Framing(size=16, channels=channels))
    assert np.array_equal(read, pixels)
    x = to_x(torch.from_numpy(read.transpose(2, 0, 1).copy())[None])
    write_png(tmp_path / "b.png", to_pictures(from_x(x))[0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(picture))


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif", "gif"])
@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    data = saved(path, Image.fromarray(noise(64, 64)))
    path.write_bytes(data[: int(len(data) * keep)])
    for look in (inspect_image, lambda p: read_image(p, SQUARE)):
        with pytest.raises(BrokenImageError, match=rf"Cannot use the picture .*cut\.{suffix}: ") as caught:
            look(path)
        assert caught.value.reason in ("truncated or damaged", "unreadable") and caught.value.detail
        assert "\n" not in str(caught.value)


def test_pillow_itself_would_pass_a_truncated_jpeg(tmp_path: Path) -> None:
    """Why `verify` is not used."""
    data = saved(tmp_path / "cut.jpg", Image.fromarray(noise(64, 64)))
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    Image.open(tmp_path / "cut.jpg").verify()


@pytest.mark.filterwarnings("error")  # what is refused need not also be warned of
@pytest.mark.parametrize("side", [20_000, 10_000, 9_000])  # Pillow refuses the first, and warns of the second
def test_a_header_bomb_is_refused_before_decoding(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(header_bomb(side))
    for look in (inspect_image, lambda p: read_image(p, SQUARE), read_png_recipe):
        with pytest.raises(BrokenImageError, match=r"bomb\.png: too large .*at most 80000000"):
            look(tmp_path / "bomb.png")


BROKEN: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.png", lambda: b"", "empty file"),
    "web page": ("a.jpg", lambda: b"<!DOCTYPE html><html>404</html>", "a web page, not media"),
    "text": ("a.png", lambda: b"no picture" * 100, "unreadable"),
    "phone": ("a.heic", lambda: b"\0\0\0 ftypheic", "unreadable (Pillow does not decode .heic files"),
    "drawing": ("a.svg", lambda: b"<svg/>", "unreadable (Pillow does not decode .svg files"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_picture_is_named(tmp_path: Path, case: str) -> None:
    name, data, words = BROKEN[case]
    (tmp_path / name).write_bytes(data())
    with pytest.raises(BrokenImageError) as caught:
        inspect_image(tmp_path / name)
    assert f"{tmp_path / name}: {words}" in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no.png", "no such file"), (tmp_path, "not a regular file")):
        with pytest.raises(BrokenImageError, match=words):
            read_image(path, SQUARE)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_depth_without_a_white_is_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (16, 16), 1000).save(tmp_path / "deep.tif")
    with pytest.raises(BrokenImageError, match="more than 16 bits"):
        read_image(tmp_path / "deep.tif", SQUARE)


# ---------------------------------------------------------------- modes


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "print.jpg", SQUARE).astype(int) - RED).max() < 8
    assert inspect_image(tmp_path / "print.jpg").mode == "CMYK"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_rounded_to_8(tmp_path: Path, suffix: str) -> None:
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
    read = read_image(tmp_path / f"deep.{suffix}", SQUARE)
    assert np.array_equal(read[..., 0].ravel(), np.arange(256)) and (read == read[..., :1]).all()
    assert inspect_image(tmp_path / f"deep.{suffix}").mode == "I;16"


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (0, 0, 8, 16))
    image.save(tmp_path / "palette.png", transparency=0)
    read = read_image(tmp_path / "palette.png", SQUARE)
    assert (read[:, :8] == BLUE).all() and (read[:, 8:] == 255).all()
    on_black = read_image(tmp_path / "palette.png", Framing(size=16, background="black"))
    assert (on_black[:, 8:] == 0).all()


@pytest.mark.parametrize(("mode", "colour"), [("RGBA", (255, 0, 0, 128)), ("LA", (0, 128))])
def test_alpha_is_composed_on_the_stated_background(tmp_path: Path, mode: str, colour: tuple[int, ...]) -> None:
    Image.new(mode, (16, 16), colour).save(tmp_path / "glass.png")
    read = read_image(tmp_path / "glass.png", Framing(size=16, background="#0000ff"))
    expected = [128, 0, 127] if mode == "RGBA" else [0, 0, 127]
    assert np.abs(read.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "YCbCr"])
def test_every_common_mode_has_three_channels(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "YCbCr" else "png"
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / f"a.{suffix}")
    assert (read_image(tmp_path / f"a.{suffix}", SQUARE) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path: Path, orientation: int) -> None:
    """All eight show the same upright picture: a red left half over two thirds of its width."""
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 32, 16))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that undoes it
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)
    read = read_image(tmp_path / "phone.png", Framing(size=[32, 48]))
    assert np.array_equal(read, np.asarray(upright))
    facts = inspect_image(tmp_path / "phone.png")
    assert (facts.width, facts.height) == (48, 32)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, RED)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "moving.gif", SQUARE) == RED).all()
    assert inspect_image(tmp_path / "moving.gif").frames == 3


# ---------------------------------------------------------------- framing


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Three squares side by side: red, green, blue."""
    image = Image.new("RGB", (96, 32), (0, 255, 0))
    image.paste(RED, (0, 0, 32, 32))
    image.paste(BLUE, (64, 0, 96, 32))
    image.save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def test_crop_takes_a_part_at_the_full_height(wide: Path) -> None:
    for place, colour in ((0.0, RED), (0.5, (0, 255, 0)), (1.0, BLUE)):
        read = read_image(wide, SQUARE, place)
        assert (read[:, 3:-3] == colour).all()  # near the edge the filter sees the neighbour, as it should


def test_pad_keeps_all_of_it(wide: Path) -> None:
    read = read_image(wide, Framing(size=[96, 96], fit="pad", background="black"))
    assert np.array_equal(read[32:64], np.asarray(Image.open(wide)))
    assert not read[:32].any() and not read[64:].any()


def test_stretch_distorts(wide: Path) -> None:
    read = read_image(wide, Framing(size=[60, 30], fit="stretch"))
    assert read.shape == (60, 30, 3)
    assert (read[:, 3] == RED).all() and (read[:, 26] == BLUE).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (7, 5), (500, 333)])
def test_any_proportions_give_the_asked_size(tmp_path: Path, fit: str, size: tuple[int, int]) -> None:
    Image.new("RGB", size, RED).save(tmp_path / "odd.jpg", quality=95)
    read = read_image(tmp_path / "odd.jpg", Framing(size=[24, 40], fit=fit, background="red"), 0.3)
    assert read.shape == (24, 40, 3) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - RED).max() < 8


def test_one_channel_is_luminance(wide: Path) -> None:
    read = read_image(wide, Framing(size=16, channels=1))
    assert read.shape == (16, 16, 1) and (read[:, 3:-3] == 150).all()  # of pure green, ITU-R 601


@pytest.mark.parametrize("background", ["nocolour", "#12345", "#00000000"])
def test_a_background_is_an_opaque_colour(background: str) -> None:
    with pytest.raises(ValueError, match="background"):
        Framing(background=background)


# ---------------------------------------------------------------- writing


def test_a_png_carries_its_recipe(tmp_path: Path) -> None:
    recipe = {"prompt": "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{DOG FACE}", "seed": 7, "steps": None}
    write_png(tmp_path / "a.png", Image.fromarray(noise()), recipe)
    assert read_png_recipe(tmp_path / "a.png") == recipe
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), noise())


def test_a_png_without_a_recipe_or_with_a_foreign_one(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", Image.new("RGB", (4, 4)))
    assert read_png_recipe(tmp_path / "a.png") is None
    for text in ("not JSON", "[1, 2]", "[" * 100_000):
        info = PngInfo()
        info.add_text("latentdiff", text)
        Image.new("RGB", (4, 4)).save(tmp_path / "b.png", pnginfo=info)
        assert read_png_recipe(tmp_path / "b.png") is None


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 4))
    write_png(tmp_path / "a.png", picture)
    for path, words in (
        (tmp_path / "a.png", "exists"),
        (tmp_path / "a.jpg", r"must end in \.png"),
        (tmp_path / "no/a.png", "No such file"),
    ):
        with pytest.raises(InputError, match=words):
            write_png(path, picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    write_png(tmp_path / "a.png", Image.new("RGB", (8, 8)), overwrite=True)
    assert Image.open(tmp_path / "a.png").size == (8, 8)


def test_a_sheet_shows_all_in_order() -> None:
    sheet = Sheet(5, 3, (10, 20))
    for i in range(5):
        sheet.add(Image.new("RGB", (10, 20), (i, i, i)))
    assert sheet.picture.size == (34, 42)
    seen = [sheet.picture.getpixel((12 * column + 1, 22 * row + 1))[0] for row in (0, 1) for column in range(3)]
    assert seen == [0, 1, 2, 3, 4, 255]


def test_a_large_sheet_is_made_smaller() -> None:
    sheet = Sheet(100, 10, (2048, 1024))
    sheet.add(Image.new("RGB", (2048, 1024), RED))
    assert max(sheet.picture.size) < 4200 and sheet.picture.getpixel((5, 5)) == RED
