"""Take the screenshots of the page that README and docs show, from a page that is running.

    python app.py --weights FILE &
    python benchmarks/app_screenshots.py PICTURE --url http://127.0.0.1:7860 --out images

Opens it in headless Chromium, uploads the picture as a user does, waits for the classes and the
heat map, and writes app.png (1280 px wide) and app_phone.png (390 px). Fails if the page sent a
request to another host. Needs Debian's chromium and chromium-driver, and selenium 4.51.0.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WIDTHS = {"app.png": 1280, "app_phone.png": 390}  # pixels; 390 is a phone's
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
WAIT_S = 60


@contextlib.contextmanager
def browser() -> Iterator["Chrome"]:
    """Headless Chromium, logging its requests.

    Raises ValueError naming what to install.
    """
    for program, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
        if not shutil.which(program):
            raise ValueError(f"{program} is missing: apt-get install {package}")
    try:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    except ModuleNotFoundError:
        raise ValueError("a package is missing: pip install selenium==4.51.0") from None
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options, ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def wait_until(driver: "Chrome", script: str, what: str) -> object:
    """The first true answer of a script in the page. Raises TimeoutError after a minute."""
    deadline = time.monotonic() + WAIT_S
    while not (answer := driver.execute_script(f"return {script}")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S} s for {what}")
        time.sleep(0.05)
    return answer


def give(driver: "Chrome", picture: Path) -> None:
    """Upload a file to an open page, as the file dialog does."""
    wait_until(driver, "document.querySelector('input[type=file]')", "the page")
    driver.find_element("css selector", "input[type=file]").send_keys(str(picture.resolve()))


def shown_classes(driver: "Chrome") -> list[str]:
    """The classes that the page shows, each "NAME\\nN%", once the heat map is there too."""
    heat_map = "[...document.querySelectorAll('#heat_map img')].some(i => i.naturalWidth > 0)"
    rows = "[...document.querySelectorAll('#classes button')].map(row => row.innerText.trim())"
    wait_until(driver, f"{rows}.length > 0 && {heat_map}", "classes and heat map")
    return driver.execute_script(f"return {rows}")


def requested_hosts(driver: "Chrome") -> set[str]:
    """Hosts that the page has sent requests to since this was last called."""
    hosts = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            params = message["params"]
            url = urlsplit(params["request"]["url"] if "request" in params else params["url"])
            # The browser's own pages, such as chrome-untrusted://new-tab-page, are no hosts.
            if url.scheme not in ("data", "blob", "chrome", "chrome-untrusted"):
                hosts.add(url.hostname)
    return hosts


def set_size(driver: "Chrome", width: int, height: int) -> None:
    """Show pages as on a device of that size in pixels; a window is never below 500 px."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def take(driver: "Chrome", url: str, picture: Path, path: Path, width: int) -> list[str]:
    """Write one screenshot, as high as the page; returns the classes shown."""
    set_size(driver, width, 800)
    driver.get(url)
    give(driver, picture)
    classes = shown_classes(driver)
    time.sleep(1)  # the bars grow
    set_size(driver, width, driver.execute_script("return document.body.scrollHeight"))
    time.sleep(0.5)
    driver.save_screenshot(str(path))
    if strangers := requested_hosts(driver) - {urlsplit(url).hostname}:
        raise ValueError(f"the page sent requests to other hosts: {', '.join(sorted(strangers))}")
    return classes


def main(argv: Sequence[str] | None = None) -> int:
    """Write the screenshots: returns 0, or 2 if the user must change something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="file to upload")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="where the page is")
    parser.add_argument("--out", type=Path, default=Path("images"), help="folder [images]")
    args = parser.parse_args(argv)
    try:
        with browser() as driver:
            for name, width in WIDTHS.items():
                classes = take(driver, args.url, args.picture, args.out / name, width)
                print(f"{args.out / name}:", ", ".join(" ".join(row.split()) for row in classes))
    except (ValueError, OSError) as error:
        print(f"app_screenshots.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
