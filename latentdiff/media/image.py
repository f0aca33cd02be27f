"""Picture files in and out: decoding with every fault named, picture <-> x, writing with the recipe inside.

Pillow's `verify` passes a JPEG that was cut in half, so everything here decodes: only `load` knows.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from latentdiff.config import Framing
from latentdiff.errors import InputError
from latentdiff.media.files import BrokenMediaError, write_whole
from latentdiff.media.headers import first_bytes_fault
from latentdiff.media.packed import as_path, openable

if TYPE_CHECKING:
    from torch import Tensor

READABLE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
UNREADABLE_SUFFIXES = frozenset({".heic", ".heif", ".svg", ".psd", ".jxl", ".cr2", ".nef", ".arw", ".dng"})
"""Pictures that people have and Pillow cannot decode: to be reported, never passed over."""

MAX_PIXELS = 80_000_000
"""Larger pictures are refused by their header, since decoding one may fill the memory; Pillow itself: 179 million."""

RECIPE_KEY = "latentdiff"
"""Of the PNG text chunk."""

_SHEET_SIDE = 4096  # pixels


class BrokenImageError(BrokenMediaError):
    """A picture file that cannot be used."""


@dataclass(frozen=True)
class ImageFacts:
    """What a decoded file holds: its size in pixels, upright, its mode in Pillow's words, and its frames."""

    width: int
    height: int
    mode: str
    frames: int


def read_image(path: str | Path, framing: Framing, place: float = 0.5) -> np.ndarray:
    """Decode a file (its first frame) upright and bring it to the size and channels of a framing.

    Args:
        path: Picture in any common format, of any size up to `MAX_PIXELS` and any mode of 8 or 16 bits.
        framing: What it shall become.
        place: Which part of an overhanging picture to crop, from 0 (left or top) to 1.

    Returns:
        Pixels (height, width, channels), uint8.

    Raises:
        BrokenImageError: The file is missing or broken.
    """
    path = as_path(path)
    height, width = framing.size
    with _open(path) as image:
        # A JPEG can be decoded at a half, a quarter or an eighth of its size: 12 megapixels in a tenth of the time.
        image.draft(None, (2 * max(width, height),) * 2)
        upright = _upright(image, path, framing.background)
    if framing.channels == 1:
        upright = upright.convert("L")
    pixels = np.asarray(_fit(upright, framing, place))
    return pixels.reshape(height, width, framing.channels)


def inspect_image(path: str | Path) -> ImageFacts:
    """Decode a whole file and say what it holds.

    Raises:
        BrokenImageError: The file is missing or broken, or of a mode that has no 8-bit meaning.
    """
    path = as_path(path)
    with _open(path) as image:
        # The second picture of an MPO (what phones call JPEG) is a preview or a depth map, no frame.
        mode, frames = image.mode, 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        upright = _upright(image, path, "white")
    return ImageFacts(upright.width, upright.height, mode, frames)


def to_x(pixels: Tensor) -> Tensor:
    """x (B, C, H, W), float32 in [-1, 1], of uint8 pixels of the same shape."""
    return pixels.float() / 127.5 - 1.0


def from_x(x: Tensor) -> Tensor:
    """uint8 pixels of x, rounded; the exact inverse of `to_x`. What lies beyond [-1, 1] is clipped."""
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).byte()


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pillow's pictures of uint8 pixels (B, C, H, W), C 1 or 3."""
    batch = pixels.cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in batch]


class Sheet:
    """Pictures of one size side by side on white, row after row, pasted as they come.

    Args:
        count: How many there will be.
        columns: Of a row.
        size: (width, height) of each; all are made smaller where the sheet would be larger than 4096 pixels.
    """

    def __init__(self, count: int, columns: int, size: tuple[int, int]) -> None:
        rows = -(-count // columns)
        scale = min(1.0, _SHEET_SIDE / max(columns * size[0], rows * size[1]))
        self.columns, self.added = columns, 0
        self.width, self.height = max(1, int(size[0] * scale)), max(1, int(size[1] * scale))
        self.picture = Image.new("RGB", (columns * (self.width + 2) - 2, rows * (self.height + 2) - 2), "white")

    def add(self, picture: Image.Image) -> None:
        """Put the next one in its place."""
        row, column = divmod(self.added, self.columns)
        cell = (self.width, self.height)
        small = picture if picture.size == cell else picture.resize(cell)
        self.picture.paste(small, (column * (self.width + 2), row * (self.height + 2)))
        self.added += 1


def write_png(path: str | Path, picture: Image.Image, recipe: dict | None = None, overwrite: bool = False) -> Path:
    """Write a picture as PNG with its recipe inside; the file appears whole or not at all.

    Args:
        path: File to write, in a folder that exists.
        picture: Of any mode that PNG knows.
        recipe: What made it, JSON values only; it goes into a text chunk under `RECIPE_KEY`.
        overwrite: Replace a file that exists.

    Raises:
        InputError: Another suffix than .png, an existing file, or an unwritable place.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"Cannot write {path}: the name must end in .png.")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name or ask to overwrite it.")
    info, buffer = PngInfo(), io.BytesIO()
    if recipe is not None:
        info.add_text(RECIPE_KEY, json.dumps(recipe))  # ASCII, which is all that a tEXt chunk holds everywhere
    picture.save(buffer, "PNG", pnginfo=info)
    write_whole(path, buffer.getvalue())
    return path


def read_png_recipe(path: str | Path) -> dict | None:
    """Return the recipe that a PNG carries, or None where it carries none.

    It comes from a file, so it is as trustworthy as the file's sender: data to show, never to run.

    Raises:
        BrokenImageError: The file is missing or no picture.
    """
    path = Path(path)
    with _open(path) as image:
        _upright(image, path, "white")  # text chunks may stand behind the pixels
        comment = getattr(image, "text", {}).get(RECIPE_KEY)
    try:
        recipe = json.loads(comment) if comment else None
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _broken(path: Path, reason: str, detail: str = "") -> BrokenImageError:
    return BrokenImageError.of(path, "picture", reason, detail)


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open a file by its header alone, or say why it cannot be used."""
    if not path.is_file():
        raise _broken(path, "no such file" if not path.exists() else "not a regular file")
    if path.suffix.lower() in UNREADABLE_SUFFIXES:
        raise _broken(path, "unreadable", f"Pillow does not decode {path.suffix} files: convert it to PNG or JPEG")
    try:
        fault = first_bytes_fault(path)
        if fault:
            raise _broken(path, *fault)
        with warnings.catch_warnings():  # Pillow warns from 89 million pixels on of what is refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(openable(path))
    except UnidentifiedImageError:
        raise _broken(path, "unreadable", "no picture format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise _broken(path, "too large", f"{error}; at most {MAX_PIXELS} are decoded") from None
    except BrokenImageError:
        raise
    except Exception as error:  # decoders of foreign formats raise whatever their parsing meets
        raise _broken(path, "unreadable", _said(error)) from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            detail = f"{image.width} x {image.height} pixels; at most {MAX_PIXELS} are decoded"
            raise _broken(path, "too large", detail)
        yield image


def _upright(image: Image.Image, path: Path, background: str) -> Image.Image:
    """The first frame as RGB, every pixel of it there, turned as its EXIF orientation says."""
    try:
        image.load()
        if image.mode in ("I", "F"):
            raise _broken(path, "more than 16 bits", f"mode {image.mode} has no fixed white: save it with 8 or 16 bits")
        return _flatten(ImageOps.exif_transpose(image), background)
    except BrokenImageError:
        raise
    except Exception as error:  # as above
        raise _broken(path, "truncated or damaged", _said(error)) from None


def _flatten(image: Image.Image, background: str) -> Image.Image:
    """Any mode as RGB: alpha composed on the background, 16 bits rounded to 8, CMYK converted."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion cuts off all above 255
        levels = np.asarray(image).astype(np.float32) / 257.0
        image = Image.fromarray(levels.round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert("RGB")


def _fit(image: Image.Image, framing: Framing, place: float) -> Image.Image:
    """The picture at the framing's size; one that has it already stays as it is, bit by bit."""
    height, width = framing.size
    if image.size == (width, height):
        return image
    resampling = Image.Resampling.LANCZOS
    if framing.fit == "stretch":
        return image.resize((width, height), resampling)
    ratios = width / image.width, height / image.height
    if framing.fit == "crop":
        seen = width / max(ratios), height / max(ratios)
        left, top = (place * max(0.0, side - part) for side, part in zip(image.size, seen, strict=True))
        box = (left, top, min(left + seen[0], image.width), min(top + seen[1], image.height))
        return image.resize((width, height), resampling, box)
    inner = tuple(max(1, round(side * min(ratios))) for side in image.size)
    whole = Image.new("RGB", (width, height), framing.background).convert(image.mode)
    whole.paste(image.resize((inner[0], inner[1]), resampling), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return whole


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
