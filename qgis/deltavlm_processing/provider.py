"""Processing provider `deltavlm`: its algorithms, its one setting, and the program that they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsApplication, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from . import program
from .translation import tr

PROGRAM = "DELTAVLM_PROGRAM"  # name of the setting
GROUP = "deltavlm"


def icon() -> Any:
    """Icon of the provider and its algorithms."""
    return QIcon(str(Path(__file__).parent / "icon.svg"))


def private_folder() -> Path:
    """Folder of the private environment, in the settings folder of QGIS, above all profiles."""
    return Path(QgsApplication.qgisSettingsDirPath()).parent.parent / "deltavlm"


def find_program() -> str:
    """Path of the program. Raises: ProgramError."""
    setting = ProcessingConfig.getSetting(PROGRAM)
    return program.find_program(str(setting or "").strip(), private_folder())


class Provider(QgsProcessingProvider):
    """Provider whose outputs are GeoPackages with several styled layers."""

    def id(self) -> str:
        return "deltavlm"

    def name(self) -> str:
        return "deltavlm"

    def longName(self) -> str:
        return tr("deltavlm: change between two images, by a vision-language model")

    def icon(self) -> Any:
        return icon()

    def load(self) -> bool:
        ProcessingConfig.settingIcons[GROUP] = self.icon()
        description = tr(
            "Path of the program deltavlm (empty: look on PATH, then for the private installation)"
        )
        ProcessingConfig.addSetting(Setting(GROUP, PROGRAM, description, "", valuetype=Setting.FILE))
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        ProcessingConfig.removeSetting(PROGRAM)

    def loadAlgorithms(self) -> None:
        from .algorithms import ALGORITHMS

        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def supportsNonFileBasedOutput(self) -> bool:
        return False

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        return ["gpkg"]

    def defaultVectorFileExtension(self, hasGeometry: bool = True) -> str:
        return "gpkg"

    def supportedOutputRasterLayerExtensions(self) -> list[str]:
        return ["tif"]

    def defaultRasterFileExtension(self) -> str:
        return "tif"
