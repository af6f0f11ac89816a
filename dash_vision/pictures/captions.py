"""Captions beside the pictures: a text file for one picture, or one table for the whole folder.

    01.txt, 01.caption, 01.jpg.txt, 01.jpg.caption      the caption of 01.jpg
    metadata.jsonl                                      lines of {"file_name": "01.jpg", "text": "a cat on a mat"}
    metadata.csv                                        a first line file_name,text and a line for each picture

Everything here is text written by a user, so everything here may be wrong. Whatever the bytes are, the answer
is a caption, no caption, or an `InputError` that names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..files.errors import InputError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = (".txt", ".caption")
MAX_CAPTION_CHARS = 2_000
MAX_SIDECAR_BYTES = 64 * 1024
MAX_METADATA_BYTES = 16 * 1024 * 1024
MAX_NAMES = 8  # a sentence that lists more files than this is no longer read


@dataclass(frozen=True)
class Captions:
    """What the files beside the pictures say."""

    texts: dict[str, str]
    """Captions by the picture's file name; none is empty."""
    used: tuple[str, ...]
    """Names of the files they came from."""
    blank: tuple[str, ...]
    """Names of the pictures whose caption is there but empty."""


def shown(name: object) -> str:
    """`name` made safe to print: undecodable and control characters replaced, at most 120 characters."""
    # A file name may hold line feeds, terminal escapes, or bytes that are no UTF-8 and stop print().
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(name))
    return text if len(text) <= 120 else text[:80] + "..." + text[-37:]


def listed(items: Iterable[str], limit: int = MAX_NAMES) -> str:
    """`a, b, c and 4 more`."""
    texts = list(items)
    if len(texts) <= limit:
        return ", ".join(texts)
    return f"{', '.join(texts[:limit])} and {len(texts) - limit} more"


def read_sidecar(path: Path) -> str:
    """The caption in a text file, blanks collapsed; "" when the file holds none.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or is longer than `MAX_CAPTION_CHARS`.
    """
    text = _read_utf8(path, MAX_SIDECAR_BYTES, f"a caption has at most {MAX_CAPTION_CHARS} characters; shorten it")
    return _tidy(text, shown(path.name))


def read_metadata(path: Path, images: Collection[str]) -> dict[str, str]:
    """Captions by picture file name, from a table with the columns `file_name` and `text`.

    Args:
        path: a .csv file (commas, semicolons or tabs), else JSON lines. Blank lines and other columns are ignored; a
            blank or null text gives "".
        images: the names of the pictures beside it. A `file_name` is only ever compared with these names and
            never opened, so no line can reach another file.

    Raises:
        InputError: names the first line that cannot be used, and why.
    """
    text = _read_utf8(path, MAX_METADATA_BYTES, "split the folder")
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_lines
    known = {_same_name(name): name for name in images}
    captions: dict[str, str] = {}
    for where, record in rows(text, shown(path.name)):
        name = _match_name(record.get("file_name"), known, where)
        if name in captions:
            raise InputError(f"{where} names {shown(name)} a second time; keep one line for each picture")
        captions[name] = _caption_field(record, where)
    return captions


def _json_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Where each line stands, and its object."""
    # Not splitlines(): U+2028 and its like are ordinary characters inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {name}"
            yield where, _parse_line(line, where)


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Where each row ends, and its fields by the names in the first row."""
    head = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=head.count)  # spreadsheets of many countries write semicolons
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        columns = [column.strip() for column in rows.fieldnames or ()]
        if not {"file_name", "text"} <= set(columns):
            raise InputError(
                f"the first line of {name} has the columns {listed(map(shown, columns)) or 'of an empty file'}; "
                "write file_name,text there"
            )
        rows.fieldnames = columns
        for row in rows:
            where = f"line {rows.line_num} of {name}"
            if None in row:
                raise InputError(f"{where} has more fields than the first line; put a caption with commas in quotes")
            yield where, dict(row)
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {name} is not valid CSV ({error}); put captions in quotes") from None


def read_captions(images: Sequence[Path], text_files: Sequence[Path], tables: Sequence[Path]) -> Captions:
    """Pair pictures with their captions.

    A text file belongs to the pictures whose name, with or without its suffix, stands before its own suffix; one that
    fits no picture is left alone (the caller counts it as a stray).

    Args:
        images: the pictures.
        text_files: the files beside them with one of `CAPTION_SUFFIXES`.
        tables: the files beside them with one of `METADATA_NAMES`.

    Raises:
        InputError: a bad caption file, or two captions for one picture.
    """
    beside: dict[str, list[Path]] = defaultdict(list)
    for path in text_files:
        beside[_same_name(path.stem)].append(path)
    lines = {path: read_metadata(path, [image.name for image in images]) for path in tables}
    used = {path.name for path in tables}
    texts: dict[str, str] = {}
    for image in images:
        keys = dict.fromkeys((_same_name(image.stem), _same_name(image.name)))
        sidecars = [path for key in keys for path in beside.get(key, ())]
        sources = [*sidecars, *(path for path in tables if image.name in lines[path])]
        if len(sources) > 1:
            first, second = (shown(path.name) for path in sources[:2])
            raise InputError(
                f"{shown(image.name)} has a caption in {first} and another in {second}; keep one of the two"
            )
        if sidecars:
            texts[image.name] = read_sidecar(sidecars[0])
            used.add(sidecars[0].name)
        elif sources:
            texts[image.name] = lines[sources[0]][image.name]
    blank = tuple(name for name, text in texts.items() if not text)
    return Captions({name: text for name, text in texts.items() if text}, tuple(sorted(used)), blank)


def _read_utf8(path: Path, limit: int, advice: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        reason = (error.strerror or "it cannot be opened").lower()
        raise InputError(f"cannot read {shown(path.name)}: {reason}; check the file") from error
    if len(data) > limit:
        raise InputError(f"{shown(path.name)} is larger than {limit:,} bytes; {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, f"byte {error.start}") from error
    # UTF-16 without a byte order mark passes as UTF-8 when it is plain English: every second byte is zero.
    if "\0" in text:
        raise _not_utf8(path, "a zero byte")
    return text


def _not_utf8(path: Path, what: str) -> InputError:
    return InputError(f"{shown(path.name)} is not UTF-8 text ({what}); open it in an editor and save it as UTF-8")


def _tidy(text: str, where: str) -> str:
    """One line: control characters count as blanks, runs of blanks become one."""
    plain = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    caption = " ".join(plain.split())
    if len(caption) > MAX_CAPTION_CHARS:
        raise InputError(
            f"the caption in {where} has {len(caption):,} characters; shorten it to at most {MAX_CAPTION_CHARS:,}"
        )
    return caption


def _parse_line(line: str, where: str) -> dict[str, object]:
    example = '{"file_name": "01.jpg", "text": "a cat on a mat"}'
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: a line of ten thousand brackets
        raise InputError(f"{where} is not valid JSON; write it as {example}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object; write it as {example}")
    return record


def _match_name(value: object, known: dict[str, str], where: str) -> str:
    """The picture that `file_name` means, or an error that says what is wrong with it."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where} has no "file_name"; name the picture it describes')
    name = value.removeprefix("./")
    # "C:" and the backslash too: a file prepared on Windows must not change its meaning here.
    if "/" in name or "\\" in name or name in (".", "..") or name[1:2] == ":":
        raise InputError(
            f"{where} names {shown(value)}, which is a path; write the plain name of a file in this folder"
        )
    match = known.get(_same_name(name))
    if match is None:
        folded = {other.casefold(): other for other in known.values()}
        near = get_close_matches(name.casefold(), folded, n=1)  # "01.JPG" for "01.jpg" is the usual slip
        hint = f"did you mean {shown(folded[near[0]])}?" if near else "remove the line or add the picture"
        raise InputError(f"{where} names {shown(value)}, and the folder has no such picture; {hint}")
    return match


def _caption_field(record: dict[str, object], where: str) -> str:
    if "text" not in record:
        keys = listed(shown(key) for key in record)
        raise InputError(f'{where} has the keys {keys} but no "text"; put the caption under "text"')
    value = record["text"]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f'{where} has a "text" of type {type(value).__name__}; put the caption in quotes')
    # JSON can spell half a surrogate pair ("\ud800"), which no tokenizer and no UTF-8 file can take.
    if any(unicodedata.category(c) == "Cs" for c in value):
        raise InputError(f"{where} has a broken \\u escape in its text; write the character itself")
    return _tidy(value, where)


def _same_name(name: str) -> str:
    # macOS hands out decomposed accents, editors write composed ones; they are the same file to the user.
    return unicodedata.normalize("NFC", name)
