"""The page in a browser."""

import re
from io import BytesIO
from itertools import pairwise

import pytest
from PIL import Image

from eval.__main__ import main
from tests.support.browser import brightness, chromium, laid_out, set_window
from tests.support.eval import copied_runs, painted_sheet


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def show(browser, page, width=1200, scheme="light"):
    set_window(browser, width, scheme=scheme)
    browser.get(page.as_uri())
    laid_out(browser)


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def test_the_slider_uncovers_the_other_method(browser, page):
    show(browser, page)
    (frame,) = find(browser, ".compare .frame")
    (over,) = find(browser, ".compare .over")

    def shown():  # of LoRA: the part of its picture that is not clipped away
        clip = browser.execute_script("return getComputedStyle(arguments[0]).clipPath", over)
        cut = [float(v) for v in re.findall(r"([\d.]+)(?:%|px)", clip)]
        return 100 - cut[1]

    from selenium.webdriver import ActionChains, Keys

    assert shown() == pytest.approx(50)
    ActionChains(browser).move_to_element_with_offset(frame, frame.size["width"] // 4, 20).click().perform()
    assert shown() == pytest.approx(75, abs=1)
    find(browser, ".compare input")[0].send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert shown() == pytest.approx(73, abs=1)


def colours(browser, element):
    """The colours at a quarter and at three quarters of an element's width, 20 pixels below its top."""
    with Image.open(BytesIO(element.screenshot_as_png)) as picture:
        pixels = picture.convert("RGB")
        return [pixels.getpixel((pixels.width * part // 4, 20)) for part in (1, 3)]


@pytest.mark.parametrize("width", [1200, 390])
def test_the_slider_lies_on_the_generated_picture_and_fits_the_window(browser, recorded, tmp_path, width):
    page = copied_runs(recorded, tmp_path)
    for name, colour in (("lora", "#ff0000"), ("dash", "#0000ff")):
        painted_sheet(colour).save(tmp_path / name / "samples.png")
    assert main(["report", str(tmp_path / "lora"), str(tmp_path / "dash"), "-o", str(page)]) == 0
    show(browser, page, width=width)
    (frame,) = find(browser, ".compare .frame")
    assert frame.size["width"] > 240
    assert colours(browser, frame) == [(255, 0, 0), (0, 0, 255)]
    find(browser, ".compare .enlarge")[0].click()
    (large,) = find(browser, "dialog .frame")
    line = find(browser, "dialog .line")[0].rect
    assert large.rect["x"] >= 0
    assert large.rect["x"] + large.rect["width"] <= width
    assert line["x"] == pytest.approx(width / 2, abs=12)  # a scroll bar's half
    assert large.size["width"] >= frame.size["width"] - 10
    assert colours(browser, large) == [(255, 0, 0), (0, 0, 255)]


def test_a_click_enlarges_and_escape_closes(browser, page):
    from selenium.webdriver import ActionChains, Keys

    show(browser, page, width=390)
    (dialog,) = find(browser, "dialog")
    assert not dialog.is_displayed()
    sheet = find(browser, "button.zoom")[0]
    small = sheet.size["width"]
    sheet.click()
    assert dialog.is_displayed()
    assert find(browser, "dialog img")[0].size["width"] > 2 * small
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not dialog.is_displayed()


def test_tables_sort_by_a_click(browser, page):
    show(browser, page)
    table = next(t for t in find(browser, "table.sortable") if "val200" in t.text)
    heads = [h.text for h in table.find_elements("css selector", "thead th")]
    column = next(i for i, text in enumerate(heads) if "parameters" in text)

    def values():
        rows = table.find_elements("css selector", "tbody tr")
        return [int(r.find_elements("css selector", "td")[column].text.replace(",", "")) for r in rows]

    before = values()
    assert len(set(before)) == 2
    button = table.find_elements("css selector", "thead button")[column]
    button.click()
    assert values() == sorted(before)
    button.click()
    assert values() == sorted(before, reverse=True)


def test_the_first_column_stays_in_sight(browser, page):
    show(browser, page, width=390)
    scroll = next(s for s in find(browser, ".scroll") if "val200" in s.text)
    for cell in scroll.find_elements("css selector", "tbody td:first-child")[:2]:
        before = cell.rect["x"]
        browser.execute_script("arguments[0].scrollLeft = 120", scroll)
        assert browser.execute_script("return arguments[0].scrollLeft", scroll) == 120
        assert cell.rect["x"] == pytest.approx(before, abs=1.5)
        browser.execute_script("arguments[0].scrollLeft = 0", scroll)


def test_the_settings_that_differ_come_first_and_all_on_request(browser, page):
    show(browser, page)
    box = find(browser, "input.differences")[0]
    seen = {r.find_element("css selector", "th").text for r in find(browser, "#settings-dreambooth tbody tr")}
    assert {name for name in seen if name} == {"dash_k"}
    box.click()
    seen = {r.find_element("css selector", "th").text for r in find(browser, "#settings-dreambooth tbody tr")}
    assert {"rank", "learning_rate", "seed"} <= seen


def test_a_phone_needs_no_sideways_scrolling_and_dark_is_dark(browser, page):
    show(browser, page, width=360)
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= 360
    show(browser, page)
    assert brightness(browser, "background-color") > 700 > 250 > brightness(browser, "color")
    show(browser, page, scheme="dark")
    assert brightness(browser, "background-color") < 150 < 600 < brightness(browser, "color")


def test_what_is_wider_than_a_phone_shows_that_it_scrolls_until_its_end(browser, page):
    show(browser, page, width=390)
    for part in [find(browser, "nav")[0], *find(browser, "section .wide")]:
        (inner,) = part.find_elements("css selector", ":scope > .scroll")
        room = browser.execute_script("return arguments[0].scrollWidth - arguments[0].clientWidth", inner)
        assert ("more" in part.get_attribute("class").split()) == (room > 2)
        if room <= 2:
            continue
        arrow = browser.execute_script("return getComputedStyle(arguments[0], '::after').content", part)
        assert arrow == '"\u203a"'
        browser.execute_script("arguments[0].scrollLeft = arguments[0].scrollWidth", inner)
        gone = "return !arguments[0].classList.contains('more')"
        assert browser.execute_async_script(f"setTimeout(() => arguments[1]((() => {{ {gone} }})()), 100)", part)
    assert find(browser, "section .wide.more") == []
    show(browser, page, width=1200)
    assert "more" not in find(browser, "nav")[0].get_attribute("class").split()


def test_wide_tables_are_reached_and_scrolled_by_the_keyboard(browser, page):
    show(browser, page, width=390)
    scroll = next(s for s in find(browser, ".scroll") if "val200" in s.text)
    assert scroll.get_attribute("tabindex") == "0"
    assert scroll.get_attribute("aria-label")
    scroll.send_keys("")
    assert browser.execute_script("return document.activeElement === arguments[0]", scroll)


@pytest.mark.parametrize("width", [1200, 390])
def test_no_words_overlap_their_neighbours_and_none_are_tiny(browser, page, width):
    show(browser, page, width=width)
    boxes = browser.execute_script("""
        return [...document.querySelectorAll(".bar, nav .links")].map(bar => [...bar.children].map(
            child => { const r = child.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom]; }));
    """)
    for children in boxes:
        for first, second in pairwise(children):
            assert first[1] <= second[0] + 1 or first[3] <= second[2] + 1
    sizes = browser.execute_script("""
        const scale = e => e.ownerSVGElement ? e.ownerSVGElement.getScreenCTM().a : 1;
        return [...document.querySelectorAll("p, td, th, small, figcaption, b, svg text")].filter(
            e => e.textContent.trim() && e.getClientRects().length).map(
            e => parseFloat(getComputedStyle(e).fontSize) * scale(e));
    """)
    assert min(sizes) >= 9


def test_the_page_asks_for_nothing_and_reports_no_error(browser, page):
    show(browser, page)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
