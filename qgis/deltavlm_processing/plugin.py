"""Plugin object: adds the Processing provider to QGIS, and removes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QCoreApplication, QLocale, QTranslator

from .provider import Provider


class Plugin:
    """What QGIS calls: `initProcessing` in qgis_process, `initGui` and `unload` in the desktop."""

    def __init__(self, iface: Any) -> None:
        self.provider: Any = None
        self.translator = QTranslator()
        locale = QLocale(QgsApplication.instance().locale())
        folder = Path(__file__).parent / "i18n"
        if self.translator.load(locale, "deltavlm_processing", "_", str(folder)):
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
