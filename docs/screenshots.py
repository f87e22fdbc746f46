"""Take the pictures of docs/report.md and docs/qgis.md.

The report of the sample pair in headless Chromium, its quicklook, its layers and a form in QGIS, and the
plugin in a QGIS desktop.

python docs/screenshots.py              needs chromium, chromedriver, selenium, QGIS (QGIS_PYTHON), xvfb-run
"""

from __future__ import annotations

import io
import json
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


def save(picture: Path, name: str) -> None:
    """Save a picture among those of the docs, at most 1200 px wide and high."""
    with Image.open(picture) as image:
        image = image.convert("RGB")
        image.thumbnail((1200, 1200))
        image.save(IMAGES / name, quality=85, optimize=True, progressive=True)
    print(f"{name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


def qgis(scratch: Path, **wish: Any) -> None:
    """Open layers of the output in QGIS, as tests/geo/qgis_look.py says."""
    python = os.environ.get("QGIS_PYTHON", "/usr/bin/python3")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PROJ_DATA")
    }
    command = [python, str(ROOT / "tests" / "geo" / "qgis_look.py"), json.dumps(wish)]
    subprocess.run(command, cwd=scratch, env=environment, check=True, stdout=subprocess.DEVNULL)


def plugin(scratch: Path) -> None:
    """Dialog, main window and model designer of a QGIS desktop with the plugin, on a screen of Xvfb."""
    plugins = scratch / "profile" / "profiles" / "default" / "python" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "deltavlm_processing").symlink_to(ROOT / "qgis" / "deltavlm_processing")
    program = scratch / "bin" / "deltavlm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m deltacli "$@"\n')
    program.chmod(0o755)
    settings = {
        "HOME": str(scratch),
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "GDAL_PAM_ENABLED": "NO",
        "QGIS_CUSTOM_CONFIG_PATH": str(scratch / "profile"),
        "DELTAVLM_PICTURES": str(scratch),
        "DELTAVLM_ROOT": str(ROOT),
    }
    process = shutil.which("qgis_process.bin") or "qgis_process"  # Debian's wrapper passes a flag too much
    enable = [process, "plugins", "enable", "deltavlm_processing"]
    subprocess.run(enable, env={**settings, "QT_QPA_PLATFORM": "offscreen"}, check=True)
    command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1000x24", "qgis", "--nologo"]
    command += ["--code", str(ROOT / "docs" / "qgis_plugin_pictures.py")]
    subprocess.run(command, env=settings, check=True)
    save(scratch / "window.png", "qgis_plugin.jpg")
    for name in ("dialog", "designer"):
        with Image.open(scratch / f"{name}.png") as picture:
            colors = picture.convert("RGB").quantize(64)
            colors.save(IMAGES / f"qgis_plugin_{name}.png", optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        page, output = scratch / "report.html", scratch / "sample_changes.gpkg"
        images = [f"sample_data/{date}.tif" for date in ("before", "after")]
        command = [sys.executable, "-m", "deltacli", "analyze", *images, "-o", str(output)]
        command += ["--polygons", "--overlap", "0", "--html", str(page)]
        command += ["--quicklook", str(scratch / "quicklook.png")]
        subprocess.run(command, cwd=ROOT, check=True)
        shot(page, "report.jpg", (1360, 900), "light", ())
        shot(page, "report_chip.jpg", (1360, 900), "dark", ("#show-cells", ".row"))
        save(scratch / "quicklook.png", "quicklook.jpg")
        layers = [f"{output}|layername={name}" for name in ("changes", "chips")]
        qgis(
            scratch,
            layers=layers,
            under=str(ROOT / images[1]),
            extent=[500000, 5399616, 500512, 5400000],
            legend=True,
            size_px=[1120, 610],
            png="qgis.png",
        )
        save(scratch / "qgis.png", "qgis.jpg")
        opinion = {"where": "polygon_id = 1", "verdict": "accept", "note": "a car park"}
        qgis(scratch, layers=layers[:1], edit=[[opinion]], form="form.png")
        with Image.open(scratch / "form.png") as form:
            form.convert("RGB").quantize(64).save(IMAGES / "qgis_form.png", optimize=True)
        plugin(scratch)


if __name__ == "__main__":
    main()
