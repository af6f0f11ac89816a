"""Who may ask the page for what, and what a request can reach."""

import base64
import http.client
import json
from urllib.parse import quote

import pytest

from dash_vision.studio import safety
from tests.support.pictures import save_pictures
from tests.support.studio import served, stopped_run

NAMES = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "it's & co")


def test_only_requests_made_out_to_this_machine_are_answered(page):
    for host in (f"127.0.0.1:{page.port}", f"localhost:{page.port}", f"[::1]:{page.port}", f"LOCALHOST:{page.port}"):
        assert page.ask("/new", Host=host)[0] == 200
    others = ("evil.example", f"evil.example:{page.port}", "127.0.0.1", "127.0.0.1:1", f"192.168.1.5:{page.port}")
    for host in (*others, f"127.0.0.1.evil.example:{page.port}", f"127.0.0.1:{page.port}.evil.example", ""):
        status, _, content = page.ask("/new", Host=host)
        assert status in (400, 421), host  # 400: uvicorn itself refuses it
        assert b"subject" not in content


def test_other_sites_can_change_nothing_and_fetch_nothing(page):
    here = f"http://127.0.0.1:{page.port}"
    for origin in (None, "null", "http://evil.example", f"{here}.evil.example", f"https://127.0.0.1:{page.port}"):
        assert page.ask("/pictures", "POST", "{}", Origin=origin)[0] == 403
        assert page.ask("/pictures/cat/upload?name=a.png", "PUT", b"x", Origin=origin)[0] == 403
    assert list(page.pictures.iterdir()) == []
    for site, mode, kind, status in (
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "cors", "empty", 403),
        ("same-site", "no-cors", "script", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
        ("none", "navigate", "document", 200),
    ):
        told = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": kind}
        assert page.ask("/new", **told)[0] == status, told


def test_nothing_changes_by_a_get(page):
    stopped_run(page.runs / "one")
    before = sorted(page.runs.rglob("*"))
    for address in ("/runs", "/runs/one/stop", "/runs/one/resume", "/runs/one/draw", "/pictures", "/reports", "/plan"):
        assert page.ask(address)[0] in (404, 405), address
    assert sorted(page.runs.rglob("*")) == before


def test_every_answer_forbids_other_sites_scripts_and_frames(page):
    for address in ("/new", "/static/studio.js", "/nowhere", "/helper?key=plan"):
        policy = page.ask(address)[1]["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.ask(address)[1]["x-content-type-options"] == "nosniff"


def test_the_page_names_no_address_outside(page):
    for address in ("/new", "/compare", "/static/studio.js", "/static/studio.css"):
        text = page.text(address)
        assert "://" not in text, address
        assert "@import" not in text


CLIMBING = ("..", "%2e%2e", "..%2f..", "..%2fsecret", "%2fetc", "..%5csecret", ".", "secret%00", "link")


@pytest.mark.parametrize("name", CLIMBING)
def test_no_name_leads_out_of_the_folders(page, name):
    (page.runs.parent / "secret").mkdir()
    stopped_run(page.runs.parent / "secret" / "run")
    (page.runs / "link").symlink_to(page.runs.parent / "secret" / "run")
    (page.pictures / "link").symlink_to(save_pictures(page.runs.parent / "secret" / "pictures"))
    for address in (f"/runs/{name}", f"/runs/{name}/state", f"/runs/{name}/file/card", f"/runs/{name}/sheet"):
        assert page.ask(address)[0] == 404, address
    for address in (f"/pictures/{name}/list", f"/pictures/{name}/thumb?name=0.png", f"/reports/{name}"):
        assert page.ask(address)[0] == 404, address
    assert page.ask(f"/static/{name}")[0] == 404
    assert page.ask(f"/new?pictures={name}")[0] == 404
    assert page.put("link", "a.png", b"x")[0] == 400


def test_no_file_outside_a_runs_folder_is_given(page):
    run = stopped_run(page.runs / "one")
    secret = page.runs.parent / "secret.png"
    save_pictures(page.runs.parent, count=1)
    (page.runs.parent / "0.png").rename(secret)
    (run / "validation").mkdir()
    (run / "validation" / "step-000001.png").symlink_to(secret)
    (run / "samples.png").symlink_to(secret)
    with open(run / "journal.jsonl", "a") as file:
        for name in ("validation/step-000001.png", "../secret.png", "../../secret.png", str(secret)):
            file.write(json.dumps({"time": 1.0, "picture": name}) + "\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "checkpoints.png").symlink_to(secret)
    assert page.ask("/runs/one/sheet")[0] == 404
    for name in ("validation/step-000001.png", "samples.png", "../secret.png", "../../secret.png", str(secret)):
        for column in (0, 1, -1, 10**9):
            assert page.ask(f"/runs/one/tile/trained/{column}?sheet={quote(name)}")[0] == 404, name


def test_no_picture_outside_its_folder_is_given(page):
    folder = save_pictures(page.pictures / "cat")
    save_pictures(page.pictures.parent / "secret", count=1)
    (folder / "link.png").symlink_to(page.pictures.parent / "secret" / "0.png")
    assert page.ask("/pictures/cat/thumb?name=0.png")[0] == 200
    for name in ("../../secret/0.png", "..%2f..%2fsecret%2f0.png", "link.png", str(folder / "0.png"), ""):
        assert page.ask(f"/pictures/cat/thumb?name={name}")[0] == 404, name
        assert page.send("/pictures/cat/caption", name=name, text="mine")[0] == 400
        assert page.send("/pictures/cat/aside", name=name)[0] == 400
    assert not list(page.pictures.parent.rglob("*.txt"))


def test_names_and_texts_from_files_are_escaped(page):
    for number, name in enumerate(NAMES):
        folder = name.replace("/", "")
        stopped_run(page.runs / folder, words=["--instance_prompt", name])
        (page.runs / folder / "log.txt").write_text(f"error: {name}\n")
        pictures = save_pictures(page.pictures / folder, count=1)
        (pictures / "0.png").rename(pictures / f"{folder}.png")
        (pictures / f"{folder}.txt").write_text(name)
        (pictures / f"bad{number}{folder}.jpg").write_text("no picture")
    addresses = ["/", "/new", "/compare"]
    for name in NAMES:
        folder = quote(name.replace("/", ""), safe="")
        addresses += [f"/runs/{folder}", f"/new?pictures={folder}", f"/pictures/{folder}/list", f"/compare?a={folder}"]
    for address in addresses:
        text = page.text(address)
        assert "<script>alert" not in text, address
        assert "<img src=x" not in text, address
    assert "&lt;script&gt;alert(1)" in page.text("/")


def test_forms_that_are_none_get_a_sentence(page):
    bodies = ["", "[]", "nonsense", '{"name": 3}', '{"name": {"a": "b"}}', "[" * 100_000, b"\xff\xfe"]
    for body in bodies:
        status, _, content = page.ask("/runs", "POST", body)
        assert status == 400
        assert json.loads(content)["error"]
    status, _, content = page.ask("/check", "POST", json.dumps({"kind": "x" * 300_000}))
    assert (status, "longer than this page takes" in json.loads(content)["error"]) == (400, True)


def test_other_machines_need_the_password(tmp_path, monkeypatch):
    monkeypatch.setattr(safety, "_WAIT", 0)  # seconds, which keep others from trying many

    def basic(password):
        return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()

    with served(tmp_path, listening=True, password="open, sesame") as page:
        host = f"192.168.1.5:{page.port}"  # as another machine calls it
        assert page.ask("/new", Host=host)[0] == 401
        assert page.ask("/static/studio.js", Host=host)[0] == 401
        for wrong in ("", "open", "Basic", "Basic ???", "Bearer open, sesame", basic("open")):
            assert page.ask("/new", Host=host, Authorization=wrong)[0] == 401
        assert page.ask("/new", Host=host, Authorization=basic("open, sesame"))[0] == 200
        # A name can be pointed to this machine by whoever owns it, an address cannot.
        assert page.ask("/new", Host=f"evil.example:{page.port}", Authorization=basic("open, sesame"))[0] == 421


def test_a_request_of_two_hosts_is_not_answered(page):
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.putrequest("GET", "/new", skip_host=True)
    connection.putheader("Host", "evil.example")
    connection.putheader("Host", f"127.0.0.1:{page.port}")
    connection.endheaders()
    assert connection.getresponse().status in (400, 421)
    connection.close()


def test_a_browser_leaves_port_80_out():
    guard = safety.Guard(None, 80, listening=False, password=None)
    for host in ("127.0.0.1", "localhost", "[::1]", "localhost:80"):
        assert guard._is_ours(host), host
    for host in ("evil.example", "evil.example:80", "127.0.0.1:81", ""):
        assert not guard._is_ours(host), host
