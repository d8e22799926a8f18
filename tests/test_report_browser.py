"""The page in a browser: it draws, switches, sorts and filters, without an error or a request.

Needs chromium and chromedriver; `make browser` runs it. REPORT names another page to open.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from made_findings import NASTY, made_findings

pytestmark = pytest.mark.browser

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
OWN = ("data:", "blob:", "chrome:")  # of the page itself, and of the browser before it
DRAWN = 9
SORTED = "document.querySelector('#sensitivity-table th[aria-sort={}]') !== null"
WAIT = 30  # seconds, at most


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    if "REPORT" in os.environ:
        return Path(os.environ["REPORT"]).resolve()
    from flaxcle.report.page import render  # noqa: PLC0415  (the other pages need no packages)

    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(made_findings()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory) -> Iterator[Any]:
    from selenium import webdriver  # noqa: PLC0415  (only these tests have it)
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(found.values()), "apt install chromium chromium-driver, for these tests"
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(found["chromedriver"]))
    driver.get_log("performance")  # what the browser's first page asked for
    opened(driver, page)
    yield driver
    driver.quit()


def opened(driver: Any, page: Path) -> None:
    driver.get(page.as_uri())
    until(driver, f"document.querySelectorAll('.chart svg').length === {DRAWN}")


def until(driver: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait  # noqa: PLC0415

    WebDriverWait(driver, WAIT).until(lambda d: d.execute_script(f"return {condition}"), condition)


def rows_of(driver: Any, table: str) -> list[str]:
    return driver.execute_script(
        f"return [...document.querySelectorAll('#{table} tbody tr')].map(row => row.innerText)"
    )


def numbers_of(driver: Any, table: str, column: int) -> list[float]:
    return driver.execute_script(
        f"return [...document.querySelectorAll('#{table} tbody tr')]"
        f".map(row => +row.cells[{column}].dataset.order)"
    )


def drawn_marks(driver: Any, chart: str) -> str:
    return driver.execute_script(
        f"return document.querySelector('#chart-{chart} svg .root').innerHTML"
    )


def requests(driver: Any) -> list[str]:
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    sent = (e["params"] for e in events if e["method"] == "Network.requestWillBeSent")
    return [params["request"]["url"] for params in sent]


def test_choosing_a_layer_switches_charts_and_numbers(browser):
    names = ("boxes-before", "boxes-after", "steps-weights")
    before = [drawn_marks(browser, name) for name in names]
    browser.execute_script(
        "const picker = document.getElementById('place');"
        "const weighty = [...document.querySelectorAll('[data-weight]:not([data-weight=\"\"])')]"
        ".map(part => part.dataset.place).filter(number => number !== picker.value);"
        "picker.value = weighty.at(-1); picker.dispatchEvent(new Event('input'));"
    )
    for name, old in zip(names, before, strict=True):
        until(
            browser,
            f"document.querySelector('#chart-{name} svg .root').innerHTML !== {json.dumps(old)}",
        )
    shown = browser.execute_script(
        "return [...document.querySelectorAll('[data-place]')].filter(part => !part.hidden)"
        ".map(part => part.dataset.place)"
    )
    assert shown == [browser.execute_script("return document.getElementById('place').value")]


def test_a_layer_of_the_network_is_chosen_by_its_link(browser):
    browser.execute_script("document.querySelector('a[data-pick=\"0\"]').click()")
    assert browser.execute_script("return document.getElementById('place').value") == "0"
    assert browser.execute_script("return location.hash") == "#layers"


def test_table_sorts_by_a_click_and_by_the_keyboard(browser):
    from selenium.webdriver.common.by import By  # noqa: PLC0415
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    heading = browser.find_elements(By.CSS_SELECTOR, "#sensitivity-table th")[3]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", heading)
    heading.click()
    until(browser, SORTED.format("ascending"))
    rising = numbers_of(browser, "sensitivity-table", 3)
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    heading.find_element(By.CSS_SELECTOR, "[tabindex='0']").send_keys(Keys.ENTER)
    until(browser, SORTED.format("descending"))
    assert numbers_of(browser, "sensitivity-table", 3) == rising[::-1]


def test_table_is_filtered_as_one_types(browser):
    from selenium.webdriver.common.by import By  # noqa: PLC0415

    everything = rows_of(browser, "sensitivity-table")
    field = browser.find_element(By.CSS_SELECTOR, "#sensitivity .dt-search input")
    field.send_keys("activations")
    left = rows_of(browser, "sensitivity-table")
    assert left == [row for row in everything if "activations" in row]
    assert 0 < len(left) < len(everything)
    browser.execute_script("arguments[0].value = ''; $(arguments[0]).trigger('input')", field)


def test_every_number_can_be_saved(browser):
    text = browser.execute_async_script(
        "const done = arguments[0];"
        "fetch(document.getElementById('save').href).then(r => r.text()).then(done)"
    )
    assert {"charts", "datasets", "tables"} <= json.loads(text).keys()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_its_window(browser, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper, ink = browser.execute_script(
        "const style = getComputedStyle(document.querySelector('#chart-noise svg text'));"
        "return [getComputedStyle(document.body).backgroundColor, style.fill]"
    )
    assert lightness(paper) > 200 if scheme == "light" else lightness(paper) < 50
    assert lightness(ink) < 60 if scheme == "light" else lightness(ink) > 200


def lightness(colour: str) -> float:
    parts = colour.removeprefix("rgb(").removesuffix(")").split(",")
    return sum(map(float, parts)) / 3


def test_nothing_was_requested_and_nothing_went_wrong(browser, page):
    """Stands last: it looks back on all that the tests before it did."""
    assert browser.get_log("browser") == []
    asked = [url for url in requests(browser) if not url.startswith(OWN)]
    assert asked == [page.as_uri()]
    if "REPORT" not in os.environ:
        assert NASTY in browser.execute_script("return document.body.innerText")
