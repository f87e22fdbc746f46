"""Pictures of the Processing plugin, taken inside a QGIS desktop: docs/screenshots.py starts it.

    qgis --nologo --code docs/qgis_plugin_pictures.py     with DELTAVLM_PICTURES=FOLDER

Runs Analyze on the sample pair from its dialog, and saves dialog.png, log.png, window.png and designer.png.
"""

import os
import time
from pathlib import Path

import processing
from processing.modeler.ModelerDialog import ModelerDialog
from qgis.core import QgsApplication, QgsProject, QgsRasterLayer
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QApplication, QDockWidget, QTreeView
from qgis.utils import iface

FOLDER = Path(os.environ["DELTAVLM_PICTURES"])
ROOT = Path(os.environ["DELTAVLM_ROOT"])
TIMEOUT_S = 90


def wait(seconds, done=lambda: False):
    """Let QGIS work for a while, at most until `done`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done():
        QApplication.processEvents()
        time.sleep(0.02)


def add_images():
    """Layers of the sample pair."""
    layers = [QgsRasterLayer(str(ROOT / "sample_data" / f"{date}.tif"), date) for date in ("before", "after")]
    for layer in layers:
        QgsProject.instance().addMapLayer(layer)
    QgsProject.instance().setCrs(layers[0].crs())
    return layers


def show_toolbox(window):
    """Toolbox with the provider opened, and nothing else on its side."""
    for dock in window.findChildren(QDockWidget):
        dock.setVisible(dock.objectName() in ("Layers", "ProcessingToolbox"))
        if dock.objectName() == "ProcessingToolbox":
            tree = dock.findChild(QTreeView)
            model = tree.model()
            for row in range(model.rowCount()):
                index = model.index(row, 0)
                if "deltavlm" in str(model.data(index)):
                    tree.expand(index)
                    tree.scrollTo(index, QTreeView.ScrollHint.PositionAtTop)


def take():
    window = iface.mainWindow()
    window.resize(1360, 800)
    before, after = add_images()
    parameters = {"BEFORE": before, "AFTER": after, "OUTPUT": str(FOLDER / "changes.gpkg")}
    dialog = processing.createAlgorithmDialog("deltavlm:analyze", {**parameters, "EXTRA": "--overlap 0"})
    dialog.resize(900, 640)
    dialog.show()
    wait(3)
    dialog.grab().save(str(FOLDER / "dialog.png"))
    dialog.runButton().click()
    wait(TIMEOUT_S, lambda: QgsProject.instance().count() >= 5)
    wait(2)
    dialog.grab().save(str(FOLDER / "log.png"))
    dialog.close()
    show_toolbox(window)
    iface.mapCanvas().setExtent(after.extent())
    iface.mapCanvas().refresh()
    wait(8)
    window.grab().save(str(FOLDER / "window.png"))
    designer = ModelerDialog()
    designer.loadModel(str(ROOT / "qgis/deltavlm_processing/models/changes_and_report.model3"))
    designer.resize(1200, 700)
    designer.show()
    wait(2)
    designer.grab().save(str(FOLDER / "designer.png"))
    os._exit(0)  # without questions about the project


assert QgsApplication.processingRegistry().algorithmById("deltavlm:analyze") is not None
QTimer.singleShot(2000, take)
