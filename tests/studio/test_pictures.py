"""Pictures that are dropped on the page: taken in or refused with the reason, cropped, captioned, taken out."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dash_vision.pictures.crops import to_tensor
from dash_vision.pictures.folder import read_folder
from dash_vision.studio import answers
from dash_vision.studio import pictures as pics
from tests.support.pictures import photo, save_pictures
from tests.support.studio import stopped_run


def encoded(kind="PNG", width=48, height=32, **options):
    buffer = io.BytesIO()
    Image.fromarray(photo(width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_what_is_dropped_is_kept_as_it_is(page):
    (page.pictures / "cat").mkdir()
    content = encoded("JPEG")
    assert page.put("cat", "IMG 1.JPG", content) == (200, {"name": "IMG 1.JPG"})
    assert (page.pictures / "cat" / "IMG 1.JPG").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../climbing.png", "climbing.png"),
        ("..\\..\\climbing.png", "climbing.png"),
        ("/etc/passwd", "passwd.png"),
        (".hidden.png", "hidden.png"),
        ("a\nb\0c.png", "a-b-c.png"),
        ("-rf.png", "rf.png"),
        ("<script>.png", "script-.png"),
        ("chat é猫.png", "chat é猫.png"),
        ("...", "picture.png"),
        ("metadata.csv", "metadata.csv.png"),
    ],
)
def test_a_file_gets_a_plain_name(page, name, kept):
    folder = page.pictures / "cat"
    folder.mkdir()
    status, answer = page.put("cat", name, encoded())
    assert status == 200, answer
    assert answer["name"] == kept
    assert [path.relative_to(page.pictures.parent).as_posix() for path in page.pictures.parent.rglob("*.png")] == [
        f"pictures/cat/{kept}"
    ]


def test_two_files_of_one_name_are_both_kept_and_share_no_caption(page):
    folder = page.pictures / "cat"
    folder.mkdir()
    names = [page.put("cat", name, encoded(kind))[1]["name"] for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"))]
    assert len({name.rpartition(".")[0] for name in names}) == 2
    assert page.send("/pictures/cat/caption", name=names[0], text="mine")[0] == 200
    read = read_folder(folder, resolution=16)
    assert {image.name: image.caption for image in read.images} == {names[0]: "mine", names[1]: None}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"", "empty"),
        ("a.png", b"not a picture", "none inside"),
        ("a.jpg", encoded("JPEG")[:400], "truncated"),
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"),
        ("a.png", encoded(width=8, height=8), "8"),
        ("a.html", b"<!doctype html><script>alert(1)</script>", "web page"),
        ("a.zip", b"PK\x03\x04" + bytes(60), "ZIP"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason_and_not_kept(page, name, content, reason):
    (page.pictures / "cat").mkdir()
    status, answer = page.put("cat", name, content)
    assert status == 400
    assert answer["error"].startswith(f"{name}: ")
    assert reason in answer["error"]
    assert list((page.pictures / "cat").iterdir()) == []


def test_a_file_that_is_too_long_is_refused(page, monkeypatch):
    monkeypatch.setattr(answers, "LARGEST", 1 << 20)
    (page.pictures / "cat").mkdir()
    status, answer = page.put("cat", "a.png", bytes(3 << 20))
    assert (status, answer["error"]) == (400, "a.png is larger than 1 MB; make it smaller")
    assert list((page.pictures / "cat").iterdir()) == []


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (100, 20), (32, 32)])
def test_the_bright_part_is_what_the_trainer_cuts(tmp_path, size):
    path = tmp_path / "cat" / "a.png"
    path.parent.mkdir()
    Image.fromarray(photo(*size)).save(path)
    (shown,) = pics.look(path.parent, 16, buckets=False).pictures
    top, right, bottom, left = (float(part.rstrip("%")) / 100 for part in shown.box.split())
    part = Image.fromarray(photo(*size)).crop(
        (left * size[0], top * size[1], (1 - right) * size[0], (1 - bottom) * size[1])
    )
    cut, _ = to_tensor(Image.fromarray(photo(*size)), (16, 16))
    mine, _ = to_tensor(part, (16, 16))
    assert np.abs(cut - mine).mean() < 0.05
    assert shown.keeps[0] * shown.keeps[1] == pytest.approx(min(size) / max(size), rel=0.07)


def test_what_the_page_says_of_a_folder_is_what_a_run_would_say(page):
    folder = save_pictures(page.pictures / "cat", count=2, size=40)
    (folder / "2.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "notes.txt").write_text("no caption")
    contents = pics.look(folder, 64, buckets=False)
    said = read_folder(folder, resolution=64).notes
    for note in contents.notes:
        assert note in said
    assert len(contents.notes) == 2  # the copy, and the text that belongs to no picture
    assert all("side below 64 pixels" in picture.remarks[0] for picture in contents.pictures)
    (folder / "3.jpg").write_text("broken")
    contents = pics.look(folder, 64, buckets=False)
    assert [picture.name for picture in contents.pictures if picture.refused] == ["3.jpg"]
    assert "cannot use" in contents.problem
    assert page.send("/runs", pictures="cat", kind="cat", subject="sks", base="miniature")[0] == 400
    assert [path.name for path in page.runs.iterdir()] == []


def test_captions_are_saved_beside_their_pictures(page):
    folder = save_pictures(page.pictures / "cat", count=2)
    assert page.send("/pictures/cat/caption", name="0.png", text="  a cat\n on  a mat ")[0] == 200
    assert (folder / "0.txt").read_text() == "a cat on a mat\n"
    assert [image.caption for image in read_folder(folder, resolution=16).images] == ["a cat on a mat", None]
    assert "a cat on a mat</textarea>" in page.text("/pictures/cat/list")
    assert page.send("/pictures/cat/caption", name="0.png", text="")[0] == 200
    assert [image.caption for image in read_folder(folder, resolution=16).images] == [None, None]
    status, answer = page.send("/pictures/cat/caption", name="0.png", text="x" * 3000)
    assert (status, "shorten it" in answer["error"]) == (400, True)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "of a table"}))
    status, answer = page.send("/pictures/cat/caption", name="1.png", text="mine")
    assert (status, answer["error"]) == (400, "the captions of this folder are in metadata.jsonl; edit them there")


def test_what_is_taken_out_is_put_aside_with_its_caption(page):
    folder = save_pictures(page.pictures / "cat", count=2)
    for text in ("first", "second"):
        page.send("/pictures/cat/caption", name="0.png", text=text)
        assert page.send("/pictures/cat/aside", name="0.png")[0] == 200
        if text == "first":
            (folder / "left-out" / "0.png").rename(folder / "0.png")
    assert [image.name for image in read_folder(folder, resolution=16).images] == ["1.png"]
    aside = {path.name: path for path in (folder / "left-out").iterdir()}
    assert sorted(aside) == ["0-1.txt", "0.png", "0.txt"] or sorted(aside) == ["0-2.txt", "0.png", "0.txt"]
    assert aside["0.txt"].read_text() == "first\n"


def test_pictures_of_a_run_at_work_cannot_be_changed(page, monkeypatch):
    folder = save_pictures(page.pictures / "cat", count=2)
    stopped_run(page.runs / "one", words=["--instance_data_dir", str(folder), "--output_dir", str(page.runs / "one")])
    monkeypatch.setattr("dash_vision.studio.found.in_use", lambda path: path.name == "one")
    for address, form in (("caption", {"text": "x"}), ("aside", {})):
        status, answer = page.send(f"/pictures/cat/{address}", name="0.png", **form)
        assert (status, "the run one is training on these pictures" in answer["error"]) == (400, True)
    assert page.put("cat", "a.png", encoded())[0] == 400
    assert "readonly" in page.text("/pictures/cat/list")
    assert len(list(folder.iterdir())) == 2


def test_two_pages_make_two_folders(page):
    names = [page.send("/pictures", name="my cat!")[1]["name"] for _ in range(2)]
    assert len(set(names)) == 2
    assert sorted(names) == sorted(path.name for path in page.pictures.iterdir())


def test_the_example_is_the_demo(page):
    status, answer = page.send("/pictures", example="cat")
    assert (status, answer["address"]) == (200, "/new?pictures=cat")
    assert len(read_folder(page.pictures / "cat", resolution=64)) == 5
    assert page.text(answer["address"]).count('class="picture"') == 5
