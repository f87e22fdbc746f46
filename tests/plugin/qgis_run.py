"""A QGIS without windows that runs algorithms of the plugin, loads their results, and says what it got.

python3 qgis_run.py WORK.json              with the Python that has QGIS

WORK: {"program": PATH, "steps": [{"algorithm": ID or FILE.model3, "parameters": {...},
"layers": {NAME: SPEC}, "load": [OUTPUT], "cancel": true}]}. `layers` are raster layers by name, as [PATH or
URI, PROVIDER, CRS or ""]; parameters refer to them by name. `cancel` cancels at the first progress, and
`cancel_ms` by a timer. A step with `rows`, a list of parameters, is run by the dialog of batch mode. Prints
a JSON list, one object for each step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = ["/usr/share/qgis/python", "/usr/share/qgis/python/plugins", str(ROOT / "qgis")]

import processing  # noqa: E402
from processing.core.Processing import Processing  # noqa: E402
from processing.core.ProcessingConfig import ProcessingConfig  # noqa: E402
from processing.gui.BatchAlgorithmDialog import BatchAlgorithmDialog  # noqa: E402
from qgis.core import (  # noqa: E402
    QgsApplication,
    QgsCoordinateReferenceSystem,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QTimer  # noqa: E402
from qgis.PyQt.QtWidgets import QTextEdit  # noqa: E402


class Feedback(QgsProcessingFeedback):
    """Messages and progress in lists; cancels at the first progress where that is wanted."""

    def __init__(self, cancel: bool) -> None:
        super().__init__(False)
        self.lines: list[str] = []
        self.progress: list[float] = []
        self.cancel_at_progress = cancel
        self.progressChanged.connect(self.see)

    def see(self, value: float) -> None:
        self.progress.append(value)
        if self.cancel_at_progress and value > 0:
            self.cancel()

    def pushInfo(self, info: str) -> None:
        self.lines.append(info)

    def pushCommandInfo(self, info: str) -> None:
        self.lines.append(info)

    def pushWarning(self, warning: str) -> None:
        self.lines.append(f"warning: {warning}")

    def reportError(self, error: str, fatalError: bool = False) -> None:
        self.lines.append(f"error: {error}")


def run(step: dict[str, Any]) -> dict[str, Any]:
    project = QgsProject.instance()
    project.clear()
    parameters, feedback = dict(step["parameters"]), Feedback(step.get("cancel", False))
    for name, (source, provider, crs) in step.get("layers", {}).items():
        layer = QgsRasterLayer(source, name, provider)
        if crs:
            layer.setCrs(QgsCoordinateReferenceSystem(crs))
        project.addMapLayer(layer)
    for name in step.get("load", ()):
        parameters[name] = QgsProcessingOutputLayerDefinition(parameters[name], project)
    algorithm: Any = step["algorithm"]
    if algorithm.endswith(".model3"):
        model = QgsProcessingModelAlgorithm()
        assert model.fromFile(algorithm)
        model.initAlgorithm()
        algorithm = model
    context = QgsProcessingContext()
    context.setProject(project)
    context.setFeedback(feedback)
    if "cancel_ms" in step:
        QTimer.singleShot(step["cancel_ms"], feedback.cancel)
    try:
        results = processing.run(algorithm, parameters, feedback=feedback, context=context)
        if step.get("load"):
            from processing.gui.Postprocessing import handleAlgorithmResults

            found = QgsApplication.processingRegistry().algorithmById(step["algorithm"]) or algorithm
            assert handleAlgorithmResults(found, context, feedback) or feedback.isCanceled()
    except QgsProcessingException as error:
        return {"error": str(error), "lines": feedback.lines, "progress": feedback.progress}
    results = {
        name: value if isinstance(value, (str, int, float)) else str(value) for name, value in results.items()
    }
    return {
        "results": results,
        "layers": loaded_layers(),
        "lines": feedback.lines,
        "progress": feedback.progress,
    }


def loaded_layers() -> dict[str, Any]:
    return {
        layer.name(): {
            "source": layer.source(),
            "renderer": layer.renderer().type(),
            "valid": layer.isValid(),
        }
        for layer in QgsProject.instance().mapLayers().values()
    }


def run_batch(step: dict[str, Any]) -> dict[str, Any]:
    QgsProject.instance().clear()
    dialog = BatchAlgorithmDialog(QgsApplication.processingRegistry().createAlgorithmById(step["algorithm"]))
    panel, context = dialog.mainWidget(), QgsProcessingContext()
    panel.checkLoadLayersOnCompletion.setChecked(True)
    panel.addRow(len(step["rows"]) - 1)
    for number, row in enumerate(step["rows"]):
        for name, value in row.items():
            column = panel.parameter_to_column[name]
            if panel.alg.parameterDefinition(name).isDestination():
                panel.tblParameters.cellWidget(number + 1, column).setValue(value)
            else:
                panel.wrappers[number][column].setParameterValue(value, context)
    dialog.runButton().click()
    (log,) = (
        edit.toPlainText() for edit in dialog.findChildren(QTextEdit) if "Results" in edit.toPlainText()
    )
    return {"lines": log.splitlines(), "layers": loaded_layers()}


def main() -> None:
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    application = QgsApplication([], True)
    application.initQgis()
    Processing.initialize()
    from deltavlm_processing.provider import PROGRAM, Provider

    provider = Provider()
    QgsApplication.processingRegistry().addProvider(provider)
    ProcessingConfig.setSettingValue(PROGRAM, work["program"])
    reports = [run_batch(step) if "rows" in step else run(step) for step in work["steps"]]
    print(json.dumps(reports))
    sys.stdout.flush()
    os._exit(0)  # QGIS of Debian may crash on its way out


if __name__ == "__main__":
    main()
