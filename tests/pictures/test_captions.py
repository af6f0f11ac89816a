"""Captions beside pictures and in metadata: read rightly, or refused by name."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dash_vision.files.errors import InputError
from dash_vision.pictures.captions import read_metadata, read_sidecar
from tests.support.pictures import CAPTION, note, photo, read, refusal, save


def with_captions(folder: Path, *lines: object) -> Path:
    for name in ("1.png", "2.png"):
        save(folder / name, photo())
    (folder / "metadata.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return folder


def captions(folder: Path) -> list[str | None]:
    return [i.caption for i in read(folder).images]


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a clay cat on a mat", CAPTION),
        (b"\xef\xbb\xbfa clay cat on a mat\r\n", CAPTION),
        (b"  a clay\n\n\tcat   on\x07 a mat\n", CAPTION),
        ("eine Kätzin auf dem Sofa, 猫".encode(), "eine Kätzin auf dem Sofa, 猫"),
        (b"x" * 2000, "x" * 2000),
        (b"", None),
        (b" \r\n \xef\xbb\xbf"[:4], None),
    ],
)
def test_a_sidecar_is_the_caption(tmp_path, data, caption):
    save(tmp_path / "a.png", photo())
    (tmp_path / "a.txt").write_bytes(data)
    pictures = read(tmp_path)
    assert pictures.images[0].caption == caption
    assert len(pictures.notes) == (caption is None)
    if caption is None:
        assert "a.png" in note(pictures, "using the prompt")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"caf\xe9", "UTF-8"),
        ("a cat".encode("utf-16"), "UTF-8"),
        ("a cat".encode("utf-16-le"), "UTF-8"),
        (b"x" * 2001, "2,001 characters"),
        (b"x" * 10**6, "65,536 bytes"),
    ],
)
def test_bad_sidecars_are_named(tmp_path, data, words):
    save(tmp_path / "a.png", photo())
    (tmp_path / "a.txt").write_bytes(data)
    message = refusal(tmp_path)
    assert "a.txt" in message
    assert words in message


def test_pictures_without_a_caption_among_others_are_said(tmp_path):
    for name in ("1.png", "2.png", "3.png"):
        save(tmp_path / name, photo())
    (tmp_path / "2.txt").write_text(CAPTION)
    pictures = read(tmp_path)
    assert [i.caption for i in pictures.images] == [None, CAPTION, None]
    assert note(pictures, "prompt") == "2 pictures without a caption, using the prompt: 1.png, 3.png"


def test_captions_can_be_left_unread(tmp_path):
    with_captions(tmp_path, {"file_name": "1.png", "text": "one"})
    (tmp_path / "2.txt").write_bytes(b"\xff\xff")
    (tmp_path / "notes.txt").write_text("hello")
    pictures = read(tmp_path, captions=False)
    assert [i.caption for i in pictures.images] == [None, None]
    assert note(pictures, "caption") == "did not read 2 caption files: 2.txt, metadata.jsonl"
    assert note(pictures, "skipped") == "skipped 1 file that is no image: notes.txt"


def test_metadata_lines_are_captions(tmp_path):
    first = {"file_name": "./2.png", "text": " two\n\n cats \u2028 here", "score": 3}
    with_captions(tmp_path, first, "", {"file_name": "1.png", "text": None})
    assert captions(tmp_path) == [None, "two cats here"]
    assert "1.png" in note(read(tmp_path), "empty caption")


def test_metadata_matches_accents_however_they_are_spelt(tmp_path):
    save(tmp_path / "cafe\u0301.png", photo())
    line = {"file_name": "caf\u00e9.png", "text": "a café"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    assert captions(tmp_path) == ["a café"]


def test_a_raw_line_separator_inside_a_json_string_ends_no_line(tmp_path):
    with_captions(tmp_path, '{"file_name": "1.png", "text": "a\u2028b"}\r')
    assert captions(tmp_path) == ["a b", None]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 10_000, "not"),
        ("[1, 2]", "not a JSON object"),
        ({"text": "a"}, '"file_name"'),
        ({"file_name": 7, "text": "a"}, '"file_name"'),
        ({"file_name": "1.png", "caption": "a"}, 'keys file_name, caption but no "text"'),
        ({"file_name": "1.png", "text": ["a"]}, "type list"),
        ({"file_name": "1.png", "text": "x" * 2001}, "2,001 characters"),
        ({"file_name": "1.png", "text": "\ud800"}, "escape"),
        ({"file_name": "3.jpeg", "text": "a"}, "3.jpeg, and the folder has no such picture"),
        ({"file_name": "1.PNG", "text": "a"}, "did you mean"),
        ({"file_name": "metadata.jsonl", "text": "a"}, "no such picture"),
        ({"file_name": "/etc/passwd", "text": "a"}, "/etc/passwd, which is a path"),
        ({"file_name": "../1.png", "text": "a"}, "which is a path"),
        ({"file_name": "..", "text": "a"}, "which is a path"),
        ({"file_name": "..\\1.png", "text": "a"}, "which is a path"),
        ({"file_name": "C:1.png", "text": "a"}, "which is a path"),
        ({"file_name": "sub/1.png", "text": "a"}, "which is a path"),
        ({"file_name": "2.png", "text": "again"}, "second time"),
    ],
)
def test_bad_metadata_names_the_line(tmp_path, line, words):
    with_captions(tmp_path, {"file_name": "2.png", "text": "two"}, "", line)
    message = refusal(tmp_path)
    assert "line 3 of metadata.jsonl" in message
    assert words in message


def test_metadata_that_is_not_utf8(tmp_path):
    with_captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "1.png", "text": "café"}'.encode("latin-1"))
    assert "metadata.jsonl is not UTF-8" in refusal(tmp_path)


def test_two_captions_for_one_picture(tmp_path):
    with_captions(tmp_path, {"file_name": "1.png", "text": "one"})
    (tmp_path / "2.txt").write_text("two")
    assert captions(tmp_path) == ["one", "two"]
    (tmp_path / "1.txt").write_text("one")
    assert "keep one" in refusal(tmp_path)


json_values = st.none() | st.floats() | st.text(max_size=9) | st.just(["a"]) | st.just({"a": [{}]})
json_lines = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"file_name": st.sampled_from(["1.png", "2.png", ".."]) | json_values, "text": json_values},
    ),
    max_size=4,
).map(lambda records: "\n".join(map(json.dumps, records)).encode())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary() | st.text().map(str.encode) | json_lines)
def test_any_bytes_as_captions_give_text_or_an_error(tmp_path, data):
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(data)
    texts: list[str] = []
    with contextlib.suppress(InputError):
        found = read_metadata(path, ["1.png", "2.png"])
        assert set(found) <= {"1.png", "2.png"}
        texts += found.values()
    with contextlib.suppress(InputError):
        texts.append(read_sidecar(path))
    for text in texts:
        assert text == " ".join(text.split())
        assert text.encode().decode() == text  # no half characters that a tokenizer or a log would choke on
