"""What the first bytes of an audio file and libsndfile's header log say that soundfile does not.

An MP3 without a length tag (Xing, Info, VBRI) is a case of its own: libsndfile guesses its number of frames
from the first bitrate and the size of the file. With a variable bitrate it stops at the guess and may lose
most of the sound; with a constant one the guess is too long by what its ID3 pictures take.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A line of libsndfile's header log for a data chunk longer than the file. RIFF and FORM sizes are not used
# where a data size exists: many writers get them wrong in whole files. RF64 and W64 log only those.
_SIZE_LINE = re.compile(r"^\s*(?:data|SSND|Data Size|Riff size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_OGG_CUT = re.compile(r"^Ogg ?: (Last page lacks an end-of-stream bit|Junk after the last page)", re.MULTILINE)
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml)", re.IGNORECASE)

_MP3_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # MPEG 1 layer III
_MP3_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG 2 and 2.5 layer III
_MP3_RATES = (44100, 48000, 32000)  # of MPEG 1; MPEG 2 halves them, MPEG 2.5 quarters them


def first_bytes_fault(path: Path) -> tuple[str, str] | None:
    """Return the reason and detail that a file is not worth opening: empty, a web page, or a WAV of 0 Hz."""
    with path.open("rb") as file:
        head = file.read(512)
        if not head:
            return "empty file", "0 bytes"
        if _WEB_PAGE.match(head):
            return "a web page, not media", "a download that went wrong"
        file.seek(0)
        for name, at, _ in _riff_chunks(file):
            if name == b"fmt ":
                file.seek(at + 4)
                return ("sampling rate 0", "the header says 0 Hz") if file.read(4) == bytes(4) else None
    return None


def cut_in_log(log: str) -> str:
    """Return what libsndfile's header log (`SoundFile.extra_info`) says of missing data, or ""."""
    if ogg := _OGG_CUT.search(log):
        return ogg[1].lower()
    for line in _SIZE_LINE.finditer(log):
        declared, there = int(line[1]), int(line[2])
        # A program that writes to a pipe cannot know the size and puts about 2 or 4 GiB: the file is whole.
        from_pipe = min(abs(declared - 2**31), abs(declared - 2**32)) < 4096
        if declared > there and not from_pipe:
            return f"{declared} bytes declared, {there} there"
    return ""


def with_wav_comment(wav: bytes, comment: str) -> bytes:
    """Return a WAV file with a comment (LIST INFO ICMT) after its samples.

    libsndfile writes such a comment too, but does not read one of more than about 1500 bytes back.
    """
    text = comment.encode() + b"\0"
    text += b"\0" * (len(text) % 2)
    entry = b"INFOICMT" + struct.pack("<I", len(text)) + text
    wav += b"LIST" + struct.pack("<I", len(entry)) + entry
    return wav[:4] + struct.pack("<I", len(wav) - 8) + wav[8:]


def wav_comment(path: Path) -> str | None:
    """Return the comment of a WAV file, "" for a WAV without one, None for a file that is no WAV."""
    with path.open("rb") as file:
        chunks = list(_riff_chunks(file))
        for name, at, size in chunks:
            if name != b"LIST":
                continue
            file.seek(at)
            entries = io.BytesIO(file.read(min(size, path.stat().st_size)))
            if entries.read(4) != b"INFO":
                continue
            while len(header := entries.read(8)) == 8:
                key, length = struct.unpack("<4sI", header)
                text = entries.read(length + length % 2)
                if key == b"ICMT":
                    return text.rstrip(b"\0").decode("utf-8", "replace")
    return "" if chunks else None


def untagged_mp3_seconds(path: Path) -> float | None:
    """Return the duration of an MP3 of constant bitrate without a length tag, from its size.

    None stands for an MP3 with a tag, whose length libsndfile knows, and 0 for one whose bitrate varies in
    the first 2048 frames (50 s), so that nothing tells its length.
    """
    with path.open("rb") as file:
        head = file.read(10)
        start = 0
        if head[:3] == b"ID3" and len(head) == 10:  # comes first, may hold pictures; 7 bits of size a byte
            start = 10 + (head[6] << 21) + (head[7] << 14) + (head[8] << 7) + head[9]
        file.seek(start)
        data = file.read(4096)
        if any(tag in data for tag in (b"Xing", b"Info", b"VBRI")):
            return None
        data += file.read(1 << 20)
    bitrates = _mp3_bitrates(data)
    return (path.stat().st_size - start) / (125 * bitrates.pop()) if len(bitrates) == 1 else 0.0


def _mp3_bitrates(data: bytes) -> set[int]:
    """Return the bitrates in kbit/s of the MPEG frames that `data` begins with, 2048 at most."""
    bitrates: set[int] = set()
    at = max(data.find(b"\xff"), 0)
    for _ in range(2048):
        header = data[at : at + 4]
        if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # sync bits and layer III
            break
        version, kbps_index, rate_index = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
        if kbps_index in (0, 15) or rate_index == 3:
            break
        kbps = (_MP3_KBPS_1 if version == 3 else _MP3_KBPS_2)[kbps_index]
        rate = _MP3_RATES[rate_index] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
        bitrates.add(kbps)
        at += (144000 if version == 3 else 72000) * kbps // rate + (header[2] >> 1 & 1)
    return bitrates


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, offset of the content, size) of each chunk of a RIFF WAVE file, nothing for others."""
    if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
        return
    at = 12
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", header)
        at += 8
        yield name, at, size
        at += size + size % 2
        file.seek(at)
