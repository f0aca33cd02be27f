"""Drawing of emoji with Pillow from the colour bitmaps of Noto Color Emoji."""

from __future__ import annotations

import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from latentdiff.errors import InputError

FONT_NAME = "NotoColorEmoji.ttf"
SIDE = 136
"""Pixels: the bitmaps are 136 wide and 128 high."""

_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts")
_BITMAP_SIZE = 109  # the one size that the font has


class EmojiFont:
    """The font, found on this machine.

    Raises:
        InputError: It is not installed, or Pillow cannot shape sequences here.
    """

    def __init__(self) -> None:
        if not features.check("raqm"):
            raise InputError("Pillow cannot draw emoji sequences without raqm; install it: apt-get install libraqm0.")
        self.path = _find()
        try:
            self._font = ImageFont.truetype(self.path, _BITMAP_SIZE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise InputError(
                f"{self.path} has no bitmaps of {_BITMAP_SIZE} pixels ({error}); install the font's bitmap version: "
                "apt-get install fonts-noto-color-emoji."
            ) from None

    def draw(self, text: str) -> Image.Image | None:
        """One emoji, RGBA of `SIDE` x `SIDE` on transparent ground; None if the font has no single glyph for it."""
        if self._font.getlength(text) > SIDE:  # a sequence that the font does not know is drawn part by part
            return None
        picture = Image.new("RGBA", (SIDE, SIDE))
        ImageDraw.Draw(picture).text((0, 4), text, font=self._font, embedded_color=True)
        return picture if picture.getchannel("A").getbbox() else None  # an unknown character is drawn empty


def _find() -> Path:
    for folder in _FOLDERS:
        if found := sorted(Path(folder).rglob(FONT_NAME)):
            return found[0]
    try:
        command = ["fc-match", "--format=%{file}", "Noto Color Emoji"]
        nearest = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        nearest = Path()
    if nearest.name == FONT_NAME:  # fc-match always answers, with another font if need be
        return nearest
    raise InputError(f"the font {FONT_NAME} is not installed; install it: apt-get install fonts-noto-color-emoji.")
