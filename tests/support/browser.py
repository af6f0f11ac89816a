"""Debian's headless Chromium."""

import re
import shutil
from contextlib import contextmanager

import pytest

# A browser of a test fetches nothing by itself.
WORDS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium(*words):
    """A browser while inside; the test is skipped where there is none. Its logs of the console and of requests are
    kept."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("there is no chromium with chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in (*WORDS, *words):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def set_window(browser, width=1200, height=900, scheme="light"):
    """The window's size in pixels, and whether its user likes light or dark."""
    wishes = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in wishes.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def laid_out(browser):
    """Wait until a new width or content has been laid out, which it is two frames later."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def brightness(browser, part):
    """Of the page's "background-color" or "color": the sum of its red, green and blue."""
    rgb = browser.find_element("css selector", "body").value_of_css_property(part)
    return sum(map(int, re.findall(r"\d+", rgb)[:3]))
