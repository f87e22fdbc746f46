"""Take the screenshots of docs/report.md: the report of the sample pair in headless Chromium.

python docs/screenshots.py              needs chromium, chromedriver and selenium
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"


def browser(width: int, height: int, scheme: str) -> Any:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    flags = ["--headless=new", "--hide-scrollbars", f"--window-size={width},{height}"]
    for flag in flags + (["--no-sandbox"] if os.geteuid() == 0 else []):
        options.add_argument(flag)
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    return driver


def shot(page: Path, name: str, size: tuple[int, int], scheme: str, clicks: tuple[str, ...]) -> None:
    driver = browser(*size, scheme)
    try:
        driver.get(page.as_uri())
        time.sleep(1)
        for selector in clicks:
            driver.find_element("css selector", selector).click()
            time.sleep(0.5)
        with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as picture:
            picture.convert("RGB").save(IMAGES / name, quality=82, optimize=True, progressive=True)
    finally:
        driver.quit()
    print(f"{name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "report.html"
        words = ["sample_data/before.tif", "sample_data/after.tif", "-o", f"{scratch}/sample_changes.gpkg"]
        command = [sys.executable, "-m", "deltacli", "analyze", *words, "--html", str(page)]
        command += ["--quicklook", f"{scratch}/quicklook.png"]
        subprocess.run(command, cwd=ROOT, check=True)
        shot(page, "report.jpg", (1360, 900), "light", ())
        shot(page, "report_chip.jpg", (1360, 900), "dark", ("#show-cells", ".row"))
        with Image.open(f"{scratch}/quicklook.png") as picture:
            picture.thumbnail((1200, 1200))
            picture.save(IMAGES / "quicklook.jpg", quality=85, optimize=True, progressive=True)


if __name__ == "__main__":
    main()
