"""Chromium without a window, driven by selenium; its tests are skipped where one of the two is missing."""

import contextlib
import importlib.util
import shutil
import time

PROGRAMS = ("chromium", "chromedriver")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
MISSING += ["selenium"] * (importlib.util.find_spec("selenium") is None)


@contextlib.contextmanager
def chromium(*, offline=True):
    """A browser, without a network unless it is to reach a server of this machine."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        conditions = {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
        yield driver
    finally:
        driver.quit()


def until(true, seconds=300):
    """Wait for what a page or a thread does in its own time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def shown_in(driver, selector):
    """The texts of elements, read at once, for the page may replace them at any time."""
    return driver.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)


def look(driver, page, *, width=1280, dark=False):
    """Open a file or an address at a width, in the light or the dark, and wait until its script has run."""
    address = page.as_uri() if hasattr(page, "as_uri") else page
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get("about:blank")
    driver.get(address)
    there = "return document.readyState === 'complete' && location.href.startsWith(arguments[0])"
    until(lambda: driver.execute_script(there, address.split("#")[0]))
