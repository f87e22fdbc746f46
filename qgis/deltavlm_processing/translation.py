"""Translation of the plugin's words by Qt: files i18n/deltavlm_processing_LANGUAGE.qm."""

from __future__ import annotations

from qgis.PyQt.QtCore import QCoreApplication

from . import program

CONTEXT = "@default"  # in which pylupdate5 puts the words of tr()


def tr(text: str) -> str:
    """Text in the language of QGIS, or as it is."""
    return str(QCoreApplication.translate(CONTEXT, text))


program.tr = tr
