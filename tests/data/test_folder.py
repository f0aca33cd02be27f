"""Captions of a folder: the conventions that are read, and every fault with its file and row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from latentdiff.data.folder import Row, list_folder, read_folder
from latentdiff.errors import InputError


def folder_with(tmp_path: Path, files: dict[str, str | bytes]) -> Path:
    """A folder of the given files; clips 1.wav and 2.wav are there always (no test here opens them)."""
    for name, content in {"1.wav": "", "2.wav": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def captions(rows: list[Row]) -> dict[str, tuple[str, ...]]:
    return {row.path.name: row.captions for row in rows}


BOTH = {"1.wav": ("a dog barks",), "2.wav": ("rain, then wind",)}
CSV = 'file_name,text\n1.wav,a dog barks\n2.wav,"rain, then wind"\n'
JSONL = '{"file_name": "1.wav", "text": "a dog barks"}\n{"file_name": "2.wav", "text": "rain, then wind"}\n'


@pytest.mark.parametrize(
    "files",
    [
        {"metadata.csv": CSV},
        {"metadata.jsonl": JSONL},
        {"metadata.csv": CSV.replace("text", "caption")},
        {"metadata.jsonl": JSONL.replace('"text"', '"caption"')},
        {"metadata.csv": "\ufeff" + CSV},
        {"metadata.jsonl": "\ufeff" + JSONL},
        {"metadata.csv": CSV.replace("\n", "\r\n")},
        {"metadata.jsonl": JSONL.replace("\n", "\r\n")},
        {"metadata.csv": "\n" + CSV.rstrip("\n").replace("\n", "\n\n")},
        {"metadata.jsonl": "\n\n" + JSONL.replace("\n", "\n \n")},
        {"metadata.csv": CSV.replace("file_name,text", " file_name , text ").replace("1.wav", " ./1.wav ")},
        {"metadata.csv": 'id,text,file_name\n7,a dog barks,1.wav\n8,"rain,\n then  wind",2.wav\n'},
        {"1.txt": "a dog barks\n", "2.txt": "\ufeffrain, then wind\r\n\r\n", "readme.txt": "about"},
    ],
)
def test_good_folders(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    rows = read_folder(folder_with(tmp_path, files))
    assert captions(rows) == BOTH
    assert all(row.path.is_file() and row.labels == () for row in rows)


def test_text_is_taken_before_caption_and_the_key_decides(tmp_path: Path) -> None:
    table = "file_name,caption,text,prompt\n1.wav,one,two,three\n"
    folder = folder_with(tmp_path, {"metadata.csv": table})
    assert captions(read_folder(folder)) == {"1.wav": ("two",)}
    assert captions(read_folder(folder, "prompt")) == {"1.wav": ("three",)}
    assert list_folder(folder).captions_from == 'metadata.csv, column "text"'


def test_several_wordings_and_labels(tmp_path: Path) -> None:
    records = [
        {"file_name": "1.wav", "text": ["a dog barks", "a bark ", "a bark"], "sources": ["dog", "rain"]},
        {"file_name": "2.wav", "text": "犬\u2028wind", "labels": "wind", "sources": None},
        {"file_name": "1.wav", "text": "woof", "sources": ["dog", "yard"]},
        {"file_name": "clips/3.flac", "text": "x", "labels": 7, "extra": {"any": [1]}},
    ]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    rows = read_folder(folder_with(tmp_path, {"metadata.jsonl": lines, "clips/3.flac": ""}))
    assert rows == [
        Row(tmp_path / "1.wav", ("a dog barks", "a bark", "woof"), ("dog", "rain", "yard")),
        Row(tmp_path / "2.wav", ("犬 wind",), ("wind",)),
        Row(tmp_path / "clips/3.flac", ("x",), ("7",)),
    ]


def test_sidecars_of_a_tree(tmp_path: Path) -> None:
    files = {"1.txt": "one\nuno\n", "2.txt": "two", "b/3.MP3": "", "b/3.txt": "three", "b/note.md": ""}
    hidden = {".git/4.wav": "", "__MACOSX/5.wav": "", "b/._3.MP3": ""}
    rows = read_folder(folder_with(tmp_path, files | hidden))
    assert captions(rows) == {"1.wav": ("one", "uno"), "2.wav": ("two",), "3.MP3": ("three",)}


def test_a_list_may_choose_among_files(tmp_path: Path) -> None:
    listing = list_folder(folder_with(tmp_path, {"metadata.csv": "file_name,text\n2.wav,rain\n"}))
    assert captions(listing.rows) == {"2.wav": ("rain",)} and not listing.faults
    assert [(fault.path.name, fault.reason) for fault in listing.unlisted] == [("1.wav", "no caption")]


CSV_FAULTS = {
    "missing_file": ("file_name,text\n1.wav,a\n9.wav,b\n", 3, "missing file", "9.wav"),
    "wrong_folder": ("file_name,text\ntrain/1.wav,a\n", 2, "missing file", "1.wav is in"),
    "parent": ("file_name,text\n1.wav,a\n2.wav,b\n../x/1.wav,c\n", 4, 'file_name holds ".."', "../x/1.wav"),
    "parent_backslash": (
        "file_name,text\nb\\..\\..\\1.wav,a\n",
        2,
        'file_name holds ".."',
        "b\\..\\..\\1.wav",
    ),
    "absolute": ("file_name,text\n/etc/passwd,a\n", 2, "file_name is absolute", "/etc/passwd"),
    "drive": ("file_name,text\nC:\\1.wav,a\n", 2, "file_name is absolute", "C:\\1.wav"),
    "address": (
        "file_name,text\nhttps://x.org/1.wav,a\n",
        2,
        "file_name is an address",
        "https://x.org/1.wav",
    ),
    "no_name": ("file_name,text\n1.wav,a\n ,b\n", 3, "no file_name", "empty"),
    "endless_name": (f"file_name,text\n{'x' * 5000},a\n", 2, "missing file", "xxx"),
    "empty_caption": ('file_name,text\n1.wav,a\n2.wav,"  "\n', 3, "empty caption", '""'),
    "nan_caption": ("file_name,text\n1.wav,NaN\n", 2, "empty caption", "NaN"),
    "none_caption": ("file_name,text\n1.wav,None\n", 2, "empty caption", "None"),
    "duplicate": ("file_name,text\n1.wav,a\n2.wav,b\n1.wav, a\n", 4, "duplicate row", "row 2"),
    "comma": ("file_name,text\n1.wav,a dog, barking\n", 2, "wrong number of cells", "3 cells for 2 columns"),
    "short": ("file_name,text\n1.wav\n", 2, "wrong number of cells", "1 cells"),
    "row_after_long_one": ('file_name,text\n1.wav,"a\nb\nc"\n9.wav,d\n', 5, "missing file", "9.wav"),
    "open_quote": ('file_name,text\n1.wav,"a dog\n2.wav,rain\n', 2, "not CSV", "not read"),
    "no_rows": ("file_name,text\n", None, "no rows", ""),
    "empty_metadata": ("", None, "no rows", ""),
    "two_columns": ("file_name,text,text\n1.wav,a,b\n", None, "duplicate column", "text"),
}
JSONL_FAULTS = {
    "bad_json": (
        '{"file_name": "1.wav", "text": "a"}\n{"file_name": "2.wav", text: 1}\n',
        2,
        "not JSON",
        "column",
    ),
    "array": ('\n[{"file_name": "1.wav", "text": "a"}]\n', 2, "not a JSON object", "a list"),
    "null_caption": ('{"file_name": "1.wav", "text": null}\n', 1, "empty caption", "none given"),
    "nan_caption": ('{"file_name": "1.wav", "text": NaN}\n', 1, "empty caption", "NaN"),
    "number_caption": ('{"file_name": "1.wav", "text": 3}\n', 1, "caption is not text", "the number 3"),
    "no_wording": ('{"file_name": "1.wav", "text": []}\n', 1, "empty caption", "an empty list"),
    "empty_wording": ('{"file_name": "1.wav", "text": ["a", ""]}\n', 1, "empty caption", '""'),
    "one_row_without": (JSONL.replace('"text": "rain', '"txt": "rain'), 2, "empty caption", "none given"),
    "name_is_number": ('{"file_name": 1, "text": "a"}\n', 1, "no file_name", "the number 1"),
    "zero_byte": ('{"file_name": "1.wav\\u0000", "text": "a"}\n', 1, "missing file", ""),
    "duplicate": (
        JSONL + '{"file_name": "2.wav", "text": ["rain, then wind"]}\n',
        3,
        "duplicate row",
        "row 2",
    ),
    "endless_number": ('{"file_name": ' + "1" * 5000 + "}", 1, "not JSON", "digits"),
    "deep": ("[" * 100_000 + "\n", 1, "not JSON", "recursion"),
}
CASES = [("metadata.csv", *case) for case in CSV_FAULTS.values()]
CASES += [("metadata.jsonl", *case) for case in JSONL_FAULTS.values()]


@pytest.mark.parametrize(
    ("name", "content", "row", "reason", "detail"),
    CASES,
    ids=[*CSV_FAULTS, *(f"jsonl_{k}" for k in JSONL_FAULTS)],
)
def test_fault_has_file_row_and_reason(
    tmp_path: Path, name: str, content: str, row: int | None, reason: str, detail: str
) -> None:
    folder = folder_with(tmp_path, {name: content})
    first = list_folder(folder).faults[0]
    assert (first.path, first.row, first.reason) == (folder / name, row, reason)
    assert detail in first.detail
    with pytest.raises(InputError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert str(folder / name) in message and reason in message and "\n" not in message
    assert row is None or f"row {row}:" in message


def test_all_faults_are_collected_in_order_and_good_rows_kept(tmp_path: Path) -> None:
    table = "file_name,text\n1.wav,\n9.wav,b\nx,y,z\n1.wav,fine\n2.wav,nan\n"
    listing = list_folder(folder_with(tmp_path, {"metadata.csv": table}))
    assert [(fault.row, fault.reason) for fault in listing.faults] == [
        (2, "empty caption"),
        (3, "missing file"),
        (4, "wrong number of cells"),
        (6, "empty caption"),
    ]
    assert captions(listing.rows) == {"1.wav": ("fine",)}
    assert not listing.unlisted  # both files were named, if badly
    with pytest.raises(InputError, match=r"row 2: empty caption .* Further faults: 3; `latentdiff data scan"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("header", "key", "words"),
    [
        (
            "file_name,captions",
            None,
            ['"text" or "caption"', "file_name, captions", 'did you mean "captions"?'],
        ),
        ("file_name,Text", None, ["columns found: file_name, Text", 'did you mean "Text"?']),
        ("file_name,caption_1", None, ['did you mean "caption_1"?']),
        ("file_name,label", None, ["columns found: file_name, label"]),
        ("file_name;text", None, ["no column file_name", "columns found: file_name;text"]),
        ("filename,text", None, ["no column file_name", 'did you mean "filename"?']),
        ("audio_file_name,text", None, ['did you mean "audio_file_name"?']),
        ("file_name,text,prompt", "promt", ['no caption column "promt"', 'did you mean "prompt"?']),
        ("file_name,text", "caption", ['no caption column "caption"', "columns found: file_name, text"]),
    ],
)
def test_missing_column_lists_those_found(tmp_path: Path, header: str, key: str | None, words: list[str]) -> None:
    cells = ",".join("1.wav" for _ in header.split(","))
    record = json.dumps(dict.fromkeys(header.split(","), "1.wav"))
    for name, content in (("metadata.csv", f"{header}\n{cells}\n"), ("metadata.jsonl", record)):
        folder = folder_with(tmp_path / name, {name: content})
        with pytest.raises(InputError) as caught:
            read_folder(folder, key)
        assert all(word in str(caught.value) for word in [*words, str(folder / name)]), caught.value


def test_two_metadata_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl and metadata\.csv: keep one"):
        read_folder(folder_with(tmp_path, {"metadata.csv": CSV, "metadata.jsonl": JSONL}))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_other_encodings_are_refused(tmp_path: Path, name: str) -> None:
    content = CSV if name.endswith("csv") else JSONL
    for at, (data, line) in enumerate(
        {content.encode("utf-16"): 1, content.replace("rain", "Gewitter über").encode("latin-1"): 0}.items()
    ):
        folder = folder_with(tmp_path / str(at), {name: data})
        with pytest.raises(InputError, match=rf"{name}: not UTF-8 \(line {line or (3 if 'csv' in name else 2)}:"):
            read_folder(folder)


def test_sidecar_faults(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"1.txt": " \n", "3.wav": "", "3.txt": b"\xff\xfe", "4.wav": "", "4.txt": "x"})
    listing = list_folder(folder)
    found = [(fault.path.name, fault.row, fault.reason) for fault in listing.faults]
    expected = [("1.txt", None, "empty caption"), ("2.wav", None, "no caption"), ("3.txt", None, "not UTF-8")]
    assert found == expected and captions(listing.rows) == {"4.wav": ("x",)}
    with pytest.raises(InputError, match=r"1\.txt: empty caption"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "2 media files and no metadata.jsonl or metadata.csv, or a .txt file"),
        ({"train/metadata.csv": CSV}, "train/metadata.csv: give that folder"),
        ({"metadata.parquet": "x"}, "save it as metadata.csv"),
    ],
)
def test_folder_without_captions(tmp_path: Path, files: dict[str, str | bytes], words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_folder(folder_with(tmp_path, files))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)


def test_caption_key_without_metadata(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, {"1.txt": "a", "2.txt": "b"})
    with pytest.raises(InputError, match=r"no metadata\.jsonl or metadata\.csv"):
        read_folder(folder, "prompt")


def test_no_such_folder(tmp_path: Path) -> None:
    folder_with(tmp_path, {})
    with pytest.raises(InputError, match="nowhere does not exist"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"1\.wav is a file"):
        read_folder(tmp_path / "1.wav")


def test_reading_data_does_not_start_torch() -> None:
    code = "import sys, latentdiff.data.scan as s; print({'torch', 'librosa', 'matplotlib'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ---------------------------------------------------------------- kinds of media


def test_a_folder_of_pictures_follows_the_same_convention(tmp_path: Path) -> None:
    names = ("a.png", "sub/b.JPG")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    lines = [
        {"file_name": name, "text": [f"picture {name}"], "attributes": {"gender": "man", "n": 3}} for name in names
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    listing = list_folder(tmp_path)
    assert (listing.kind, listing.faults, listing.unlisted) == ("image", [], [])
    assert [row.captions for row in listing.rows] == [("picture a.png",), ("picture sub/b.JPG",)]
    assert all(row.attributes == (("gender", "man"),) for row in listing.rows)


def test_pictures_beside_sounds_need_no_captions(tmp_path: Path) -> None:
    """As `latentdiff generate --plot` leaves them."""
    folder = folder_with(tmp_path, {"metadata.csv": CSV, "1.png": "", "2.png": ""})
    listing = list_folder(folder)
    assert (listing.kind, len(listing.rows), listing.faults, listing.unlisted) == ("audio", 2, [], [])
    (folder / "metadata.csv").unlink()
    (folder / "3.txt").write_text("a third")
    (folder / "3.wav").write_bytes(b"")
    listing = list_folder(folder)
    assert listing.kind == "audio" and {fault.path.name for fault in listing.faults} == {"1.wav", "2.wav"}


@pytest.mark.parametrize("sidecars", [False, True])
def test_captions_of_two_kinds_of_media_are_refused(tmp_path: Path, sidecars: bool) -> None:
    files = {"1.txt": "a", "3.txt": "b"} if sidecars else {"metadata.csv": CSV + "3.png,a picture\n"}
    folder = folder_with(tmp_path, {"3.png": "", **files})
    with pytest.raises(InputError, match="two kinds of media .* and 1 pictures have captions: keep one kind"):
        read_folder(folder)
    assert list_folder(folder).rows == []


def test_without_captions_every_media_file_is_a_row(tmp_path: Path) -> None:
    """Whatever metadata says, so that a captioned folder and one of bare pictures are read alike."""
    for name in ("b.png", "a.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    bare = list_folder(tmp_path, captioned=False)
    assert [(row.path.name, row.captions) for row in bare.rows] == [("a.png", ("",)), ("b.png", ("",))]
    assert bare.kind == "image" and not bare.faults
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a dot\n")
    assert list_folder(tmp_path, captioned=False).rows == bare.rows
    (tmp_path / "c.wav").write_bytes(b"")
    assert [fault.reason for fault in list_folder(tmp_path, captioned=False).faults] == ["two kinds of media"]
