"""The page from start to end in a browser: drop pictures, train, watch, stop, resume, look, draw, download, compare.

    pytest -n 0 tests/studio/test_browser.py --screenshots docs/studio

trains longer and makes the pictures of docs/studio.md anew.
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from dash_vision.drawing.sheet import save_with_palette
from dash_vision.runs.journal import read_journal
from dash_vision.runs.record import read_record
from dash_vision.studio.found import same_process
from tests.support.browser import brightness, chromium, laid_out, set_window
from tests.support.paths import ROOT
from tests.support.processes import free_port

QUICK = {"max_train_steps": "20", "num_inference_steps": "2", "validation_steps": "4"}
SHOWN = {"max_train_steps": "200", "prelaunch_steps": "40", "validation_steps": "50", "holdout": "1"}
PLACE = Path("/tmp/studio")  # of the runs on the pictures, whose paths are in sight


class User:
    """Someone at a browser, and the command that serves the page."""

    def __init__(self, browser, root, shots):
        self.browser, self.root, self.shots, self.port = browser, root, shots, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.runs = root / "runs"
        self.start()

    def start(self):
        words = ["studio", "--port", self.port, "--runs", self.runs, "--no_browser"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "dash_vision", *map(str, words)]
        self.server = subprocess.Popen(command, cwd=self.root, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.address in self.server.stdout.readline()

    def kill(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()

    def go(self, address):
        self.browser.get(self.address + address)
        laid_out(self.browser)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def text(self, selector):
        """Of a part that may be replaced at any moment."""
        return self.browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def shown(self, selector):
        script = "const e = document.querySelector(arguments[0]); return !!e && e.getClientRects().length > 0"
        return self.browser.execute_script(script, selector)

    def until(self, condition, seconds=1500):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(self.browser.find_element("css selector", "body").text)
            time.sleep(0.1)

    def state(self):
        script = "return document.querySelector('#run')?.dataset.state ?? ''"
        return self.browser.execute_script(script)

    def drop(self, files):
        """Files dropped on the page, as from a file manager."""
        place = self.find("#drop").rect
        at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **at, "data": data})

    def set(self, values):
        for name, value in values.items():
            field = self.find(f'[name="{name}"]')
            fold = self.browser.execute_script("return arguments[0].closest('details')", field)
            if fold:
                self.browser.execute_script("arguments[0].open = true", fold)
            field.clear()
            field.send_keys(value)
        self.browser.execute_script("document.querySelector('#all').open = false; scrollTo(0, 0)")

    def shoot(self, name, width=1200, scheme="light", height=900, whole=False):
        """A picture of docs/studio.md, in as many colours as a small file has."""
        if self.shots is None:
            return
        set_window(self.browser, width, height, scheme)
        laid_out(self.browser)
        if whole:
            height = self.browser.execute_script("return document.scrollingElement.scrollHeight")
            set_window(self.browser, width, height, scheme)
        time.sleep(0.5)  # pictures are decoded
        picture = Image.open(BytesIO(self.browser.get_screenshot_as_png())).convert("RGB")
        self.shots.mkdir(parents=True, exist_ok=True)
        save_with_palette(picture, self.shots / f"{name}.png")
        set_window(self.browser)

    def check_page(self):
        """What every page promises: a phone's width, light and dark, names and alternative texts."""
        for width in (1200, 360):
            set_window(self.browser, width)
            laid_out(self.browser)
            assert self.browser.execute_script("return document.scrollingElement.scrollWidth") <= width
        set_window(self.browser)
        assert brightness(self.browser, "background-color") > 700 > 250 > brightness(self.browser, "color")
        set_window(self.browser, scheme="dark")
        assert brightness(self.browser, "background-color") < 150 < 600 < brightness(self.browser, "color")
        set_window(self.browser)
        assert self.browser.execute_script(UNNAMED) == []

    def requests(self):
        """Addresses of all requests since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


# Pictures without alternative text, and fields and buttons without a name.
UNNAMED = """
const named = e => e.getAttribute("aria-label") || (e.labels && e.labels.length)
  || e.querySelector("img[alt]") || (e.textContent.trim() && !/INPUT|SELECT|TEXTAREA/.test(e.tagName));
const parts = document.querySelectorAll("img, input, select, textarea, button, progress, summary, pre[tabindex]");
return [...parts].filter(e => e.getClientRects().length && !(e.tagName === "IMG" ? e.alt.trim() : named(e)))
  .map(e => e.outerHTML.slice(0, 200));
"""


@pytest.fixture
def user(tmp_path, request):
    option = request.config.getoption("--screenshots")
    if option:
        PLACE.mkdir()
    with chromium() as browser:
        set_window(browser)
        user = User(browser, PLACE if option else tmp_path, Path(option) if option else None)
        yield user
        user.kill()
        for folder in user.runs.iterdir():  # a test that failed leaves none at work
            if process := same_process(read_journal(folder).start or {}):
                process.kill()
        if option:
            shutil.rmtree(PLACE)


def test_a_subject_is_trained_looked_at_and_compared(user):
    settings = SHOWN if user.shots else QUICK
    new_run(user, settings)
    watch_stop_and_resume(user)
    look(user)
    compare(user)
    told = [entry["message"] for entry in user.browser.get_log("browser")]
    # The page asks for something that is not there yet, and asks while it was ended on purpose.
    expected = ("resource: the server responded", "net::ERR_CONNECTION_REFUSED")
    assert [message for message in told if not any(words in message for words in expected)] == []


def new_run(user, settings):
    user.go("/")  # without a run the page asks for one
    assert user.browser.current_url == f"{user.address}/new"
    user.check_page()
    bad = user.root / "photo.heic"
    bad.write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    user.drop([*sorted((ROOT / "cat").glob("*.png")), bad])
    user.until(lambda: len(user.all(".picture")) == 5 and user.shown("#refused li"))
    assert user.text("#refused li").startswith("not taken: photo.heic: ")
    user.until(lambda: "pictures=" in user.browser.current_url)
    user.find("#f-kind").send_keys("cat")
    user.find(".picture textarea").send_keys("a photo of sks cat on a white rug\t")
    (folder,) = (user.runs / "pictures").iterdir()
    user.until(lambda: list(folder.glob("*.txt")))
    assert [p.read_text() for p in folder.glob("*.txt")] == ["a photo of sks cat on a white rug\n"]
    user.set(settings)
    user.until(lambda: f"--max_train_steps {settings['max_train_steps']}" in user.text("#command"))
    assert user.text("#p-instance") == "a photo of sks cat"
    user.browser.refresh()  # what was typed is there again
    user.until(lambda: len(user.all(".picture")) == 5)
    user.until(lambda: f"--max_train_steps {settings['max_train_steps']}" in user.text("#command"))
    assert user.find(".picture textarea").get_attribute("value") == "a photo of sks cat on a white rug"
    user.check_page()
    user.shoot("new", whole=True)
    user.set({"max_train_steps": "0"})
    user.until(lambda: user.shown("#problem"))
    assert user.text("#problem").startswith("--max_train_steps is 0")
    assert "wrong" in user.find('[name="max_train_steps"]').get_attribute("class")
    user.set({"max_train_steps": settings["max_train_steps"]})
    user.until(lambda: not user.shown("#problem"))
    user.find("#start").click()
    user.until(lambda: user.browser.current_url == f"{user.address}/runs/cat")


def watch_stop_and_resume(user):
    user.until(lambda: user.text("#numbers").startswith("step "))
    user.until(lambda: user.shown("#latest img") and user.shown("#chart svg"))
    if user.shots:  # with the launch on the chart
        user.until(lambda: "launched" in user.text("#chart"))
    user.shoot("running", height=880)
    user.browser.refresh()
    assert user.state() == "running"
    user.find('[data-act="stop"]').click()
    user.until(lambda: user.state() == "stopped")
    user.check_page()
    user.kill()  # the page, not the training
    user.start()
    user.go("/runs/cat")
    user.find('[data-act="resume"]').click()
    user.until(lambda: user.state() == "running")
    user.kill()
    user.start()
    user.go("/")
    user.until(lambda: user.text(".card .pill") == "training")
    user.check_page()
    user.go("/runs/cat")
    user.check_page()
    user.until(lambda: user.state() == "finished")


def look(user):
    from selenium.webdriver import Keys

    user.check_page()
    user.shoot("looking", whole=True)
    user.shoot("dark", scheme="dark", height=900)
    user.shoot("phone", width=390, height=844)
    user.find(".frame input").send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    shown = "return getComputedStyle(document.querySelector('.frame .left')).clipPath"
    assert user.browser.execute_script(shown) == "inset(0px 52% 0px 0px)"  # of the left picture's right side
    user.all(".strip button")[1].click()
    assert "/tile/trained/1" in user.find("img.right").get_attribute("src")
    assert user.text(".prompt") == "a sks cat in the snow"
    assert user.browser.execute_script(
        "return [...document.querySelectorAll('img')].every(i => i.naturalWidth || i.loading)"
    )
    user.find("#draw button").click()
    user.until(lambda: user.shown("#drawing"))
    user.browser.refresh()  # what is being drawn comes all the same
    user.until(lambda: len(user.all("#gallery img")) == 2 or user.shown("#draw-problem"))
    assert user.text("#draw-problem") == ""
    link = user.all(".downloads a")[0].get_attribute("href")
    connection = http.client.HTTPConnection("127.0.0.1", user.port)
    connection.request("GET", link.removeprefix(user.address))
    assert connection.getresponse().read() == (user.runs / "cat" / "pytorch_lora_weights.safetensors").read_bytes()
    connection.close()


def compare(user):
    user.find('[data-act="lora"]').click()
    user.until(lambda: user.browser.current_url == f"{user.address}/runs/cat-lora")
    user.until(lambda: user.state() == "finished")
    dash, lora = (read_record(user.runs / name / "run.json") for name in ("cat", "cat-lora"))
    assert (dash.method, lora.method, dash.steps) == ("dash", "lora", lora.steps)
    user.go("/runs/cat")
    assert [option.text for option in user.all(".left option")] == ["base", "LoRA (cat-lora)", "LoRA-Dash (this run)"]
    user.all(".left option")[1].click()
    assert "/runs/cat-lora/tile/trained/0" in user.find("img.left").get_attribute("src")
    user.go("/compare?a=cat-lora&b=cat")
    rows = {row.text.split()[0] for row in user.all("tbody tr")}
    assert "dash_k" in rows
    assert "rank" not in rows
    user.check_page()
    user.shoot("compare", height=860)
    user.find("#report").click()
    user.until(lambda: user.shown("#report-link"))
    asked = user.requests()
    assert len(asked) > 20
    assert [address for address in asked if not address.startswith((user.address, "data:", "blob:"))] == []
    user.go("/reports/cat-lora--cat.html")
    assert "cat" in user.browser.title
