"""Plugin object: adds the Processing provider to QGIS, and removes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import QgsApplication, QgsSettings
from qgis.PyQt.QtCore import QCoreApplication, QLocale, QTranslator

from .provider import Provider


class Plugin:
    """What QGIS calls: `initProcessing` in qgis_process, `initGui` and `unload` in the desktop."""

    def __init__(self, iface: Any) -> None:
        self.provider: Any = None
        locale = QgsSettings().value("locale/userLocale", "") or QLocale.system().name()
        self.translator = QTranslator()
        file = Path(__file__).parent / "i18n" / f"deltavlm_processing_{str(locale)[:2]}.qm"
        if file.is_file() and self.translator.load(str(file)):
            QCoreApplication.installTranslator(self.translator)

    def initProcessing(self) -> None:
        """Register the provider."""
        self.provider = Provider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Register the provider; there is no menu and no tool bar."""
        self.initProcessing()

    def unload(self) -> None:
        """Remove the provider and the translation."""
        QgsApplication.processingRegistry().removeProvider(self.provider)
        QCoreApplication.removeTranslator(self.translator)
