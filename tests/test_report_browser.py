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
)
DRAWN = 9
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
