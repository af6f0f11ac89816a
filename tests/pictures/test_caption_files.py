"""Captions under the names and in the tables that other tools write."""

import unicodedata

import pytest

from tests.support.pictures import note, photo, read, refusal, save


def captions(folder):
    return {image.name: image.caption for image in read(folder).images}


@pytest.mark.parametrize("name", ["0.txt", "0.TXT", "0.caption", "0.png.txt", "0.png.caption"])
def test_a_text_file_beside_the_picture_is_its_caption(tmp_path, name):
    for i in range(2):
        save(tmp_path / f"{i}.png", photo())
    (tmp_path / name).write_text("a red cat\n", encoding="utf-8")
    assert captions(tmp_path) == {"0.png": "a red cat", "1.png": None}
    assert not [line for line in read(tmp_path).notes if "no image" in line]


def test_one_picture_file_has_its_caption_too(tmp_path):
    save(tmp_path / "0.png", photo())
    (tmp_path / "0.png.txt").write_text("a red cat")
    assert captions(tmp_path / "0.png") == {"0.png": "a red cat"}


def test_names_fit_however_their_accents_are_spelt(tmp_path):
    save(tmp_path / unicodedata.normalize("NFD", "café.png"), photo())
    (tmp_path / unicodedata.normalize("NFC", "café.caption")).write_text("a red cat")
    assert list(captions(tmp_path).values()) == ["a red cat"]


def test_two_pictures_of_one_stem_can_have_a_caption_each(tmp_path):
    save(tmp_path / "0.png", photo())
    save(tmp_path / "0.jpg", photo())
    (tmp_path / "0.png.txt").write_text("from the web")
    (tmp_path / "0.jpg.txt").write_text("from the camera")
    assert captions(tmp_path) == {"0.png": "from the web", "0.jpg": "from the camera"}


@pytest.mark.parametrize(
    "table",
    [
        'file_name,text\n0.png,a red cat\n1.png,"a cat, sitting"\n',
        "\ufefffile_name;text\r\n0.png;a red cat\r\n1.png;a cat, sitting\r\n",
        "text\tscore\tfile_name\na red cat\t3\t0.png\n\na cat, sitting\t4\t1.png\n",
        'file_name, text\n0.png, "a red\ncat"\n1.png, "a cat, sitting"\n',
    ],
    ids=["commas", "a spreadsheet's semicolons", "tabs", "a caption over two lines"],
)
def test_a_csv_table_gives_captions(tmp_path, table):
    for i in range(3):
        save(tmp_path / f"{i}.png", photo())
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8", newline="")
    assert captions(tmp_path) == {"0.png": "a red cat", "1.png": "a cat, sitting", "2.png": None}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("0.png,a red cat\n", "the first line of metadata.csv has the columns 0.png, a red cat; write file_name,text"),
        ("", "write file_name,text"),
        ("file_name,caption\n0.png,a red cat\n", "the columns file_name, caption"),
        ("file_name,text\n0.png,a red cat, sitting\n", "line 2 of metadata.csv has more fields than the first line"),
        ("file_name,text\n0.png,one\n0.png,two\n", "line 3 of metadata.csv names 0.png a second time"),
        ("file_name,text\n9.png,one\n", "line 2 of metadata.csv names 9.png, and the folder has no such picture"),
        ("file_name,text\n../0.png,one\n", "which is a path"),
        ('file_name,text\n0.png,"a red cat\n', "is not valid CSV"),
        ('file_name,text\n0.png,"a" red cat\n', "is not valid CSV"),
    ],
)
def test_a_bad_table_names_the_line(tmp_path, table, words):
    save(tmp_path / "0.png", photo())
    (tmp_path / "metadata.csv").write_text(table)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("0.txt", "one"), ("0.caption", "two")),
        (("0.txt", "one"), ("0.png.txt", "two")),
        (("0.caption", "one"), ("metadata.csv", "file_name,text\n0.png,two\n")),
        (
            ("metadata.jsonl", '{"file_name": "0.png", "text": "one"}'),
            ("metadata.csv", "file_name,text\n0.png,two\n"),
        ),
    ],
)
def test_two_captions_for_one_picture_are_named(tmp_path, first, second):
    save(tmp_path / "0.png", photo())
    for name, text in (first, second):
        (tmp_path / name).write_text(text)
    message = refusal(tmp_path)
    assert first[0] in message
    assert second[0] in message


def test_captions_of_every_name_can_be_left_unread(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", photo())
    (tmp_path / "0.caption").write_text("one")
    (tmp_path / "1.png.txt").write_text("two")
    (tmp_path / "metadata.csv").write_text("file_name,text\n2.png,three\n")
    pictures = read(tmp_path, captions=False)
    assert [image.caption for image in pictures.images] == [None] * 3
    assert note(pictures, "did not read 3 caption files")
