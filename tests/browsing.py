"""Chromium driven by selenium, and axe-core: fixtures of tests that look at pages."""

import os
import shutil
import subprocess
import tarfile

import pytest

AXE = "axe-core@4.11.0"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


def absent(what):
    """Skip where a tool is missing; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser():
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        absent("needs Debian's chromium and chromium-driver")
    try:
        from selenium import webdriver
    except ImportError:
        absent("needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture(scope="session")
def axe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        absent("needs npm for axe-core")
    packed = subprocess.run(
        ["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if packed.returncode:
        pytest.skip("the npm registry does not answer")
    with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def violations(browser, axe, excluded=""):
    """Rules of axe-core that the open page violates, each with at most three places."""
    browser.execute_script(axe)
    return browser.execute_async_script(
        "const [excluded, done] = arguments;"
        "const context = excluded ? { exclude: [[excluded]] } : document;"
        "axe.run(context, { resultTypes: ['violations'] }).then(result =>"
        "done(result.violations.map(rule => [rule.id, rule.nodes.slice(0, 3).map(node => node.html)])))",
        excluded,
    )
