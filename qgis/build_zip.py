"""Zip of the QGIS plugin, for Plugins > Install from ZIP and for the plugin repository.

python qgis/build_zip.py -o dist --set repository=URL --set email=ADDRESS

Without --set the zip installs, but the plugin repository would refuse it: the script says what is missing.
Translations: i18n/*.ts are compiled where lrelease is installed.
"""

from __future__ import annotations

import argparse
import configparser
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

PLUGIN = Path(__file__).resolve().parent / "deltavlm_processing"
LICENSE = PLUGIN.parent.parent / "LICENSE"
#: what the plugin repository requires
REQUIRED = (
    *("name", "qgisMinimumVersion", "description", "about", "version", "author", "email"),
    *("homepage", "tracker", "repository", "license"),
)


def read_metadata(values: Mapping[str, str] | None = None) -> configparser.ConfigParser:
    """Metadata of the plugin, with values filled in; homepage and tracker follow from the repository."""
    metadata = configparser.ConfigParser()
    metadata.optionxform = str  # type: ignore[assignment,method-assign]  # QGIS reads qgisMinimumVersion
    metadata.read(PLUGIN / "metadata.txt", encoding="utf-8")
    given = dict(values or {})
    if "repository" in given:
        given = {
            "homepage": given["repository"],
            "tracker": given["repository"].rstrip("/") + "/issues",
            **given,
        }
    for name, value in given.items():
        metadata["general"][name] = value
    return metadata


def missing_metadata(general: Mapping[str, str]) -> list[str]:
    """Names of required values that are empty."""
    return [name for name in REQUIRED if not general.get(name, "").strip()]


def compiled_translations(folder: Path) -> list[Path]:
    """Files .qm of all i18n/*.ts, written into `folder`; none without lrelease."""
    lrelease = shutil.which("lrelease")
    sources = sorted((PLUGIN / "i18n").glob("*.ts"))
    if sources and lrelease is None:
        print("lrelease is not installed: the zip has no translations", file=sys.stderr)
    files = []
    for source in sources if lrelease else []:
        files.append(folder / source.with_suffix(".qm").name)
        subprocess.run([str(lrelease), "-silent", str(source), "-qm", str(files[-1])], check=True)
    return files


def build_zip(folder: Path, values: Mapping[str, str] | None = None) -> Path:
    """Write deltavlm_processing-VERSION.zip into `folder`, the same bytes for the same files."""
    metadata = read_metadata(values)
    text = io.StringIO()
    metadata.write(text, space_around_delimiters=False)
    names = [*PLUGIN.rglob("*.py"), *PLUGIN.rglob("*.model3"), PLUGIN / "icon.svg"]
    files = {f"{PLUGIN.name}/{path.relative_to(PLUGIN).as_posix()}": path.read_bytes() for path in names}
    files |= {
        f"{PLUGIN.name}/metadata.txt": text.getvalue().encode(),
        f"{PLUGIN.name}/LICENSE": LICENSE.read_bytes(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for path in compiled_translations(Path(scratch)):
            files[f"{PLUGIN.name}/i18n/{path.name}"] = path.read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PLUGIN.name}-{metadata['general']['version']}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), metavar="FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of metadata.txt")
    arguments = parser.parse_args()
    values = dict(item.split("=", 1) for item in arguments.set)
    print(build_zip(arguments.output, values))
    missing = missing_metadata(read_metadata(values)["general"])
    if missing:
        print(f"not for the plugin repository yet: metadata.txt has no {', '.join(missing)}", file=sys.stderr)


if __name__ == "__main__":
    main()
