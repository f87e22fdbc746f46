"""Opens layers in a real QGIS, without a screen: tells what it makes of them, draws them, fills in forms.

Runs under the Python that QGIS came with, which knows nothing of this project:

    /usr/bin/python3 qgis_look.py '{"layers": ["out.gpkg|layername=chips"], "png": "map.png"}'

Of the JSON, `layers` are drawn first to last, the first on top; `under` is a raster below them; `extent` is
[xmin, ymin, xmax, ymax] in the CRS of the first layer, else all of it; `size_px` is [width, height], 96 dpi;
with `legend` the map has a legend next to it. `edit` has for each layer a list of rows whose form is filled
in and saved: {"where": EXPRESSION, COLUMN: TEXT or null, ...}; `form` is a PNG of the last form. Prints JSON
about each layer.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from qgis.core import (
    Qgis,
    QgsApplication,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsFeatureRequest,
    QgsLayerTree,
    QgsLayoutExporter,
    QgsLayoutItemLegend,
    QgsLayoutItemMap,
    QgsLayoutPoint,
    QgsLayoutSize,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsPrintLayout,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.gui import QgsAttributeEditorContext, QgsAttributeForm, QgsGui
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtTest import QTest
from qgis.PyQt.QtWidgets import QComboBox, QLineEdit

MM_PX = 25.4 / 96


def describe(layer):
    """Properties of a layer as QGIS reads them."""
    renderer = layer.renderer()
    table = layer.attributeTableConfig()
    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    first = next(layer.getFeatures(), None)
    tip = ""
    if first is not None:
        context.setFeature(first)
        from qgis.core import QgsExpression

        tip = QgsExpression.replaceExpressionText(layer.mapTipTemplate(), context)
    return {
        "rows": layer.featureCount(),
        "crs": layer.crs().authid(),
        "renderer": renderer.type(),
        "legend": [item.label() for item in renderer.legendSymbolItems()],
        "aliases": {field.name(): field.alias() for field in layer.fields()},
        "comments": {field.name(): field.comment() for field in layer.fields()},
        "widgets": {field.name(): field.editorWidgetSetup().config() for field in layer.fields()},
        "editable": [
            field.name()
            for index, field in enumerate(layer.fields())
            if not layer.editFormConfig().readOnly(index)
        ],
        "hidden": [column.name for column in table.columns() if column.hidden and column.name],
        "labels": layer.labelsEnabled(),
        "title": layer.displayExpression(),
        "tip": tip,
    }


def draw(layers, wish):
    """The picture of the map alone."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setEllipsoid(layers[0].crs().ellipsoidAcronym())
    settings.setOutputSize(QSize(*wish.get("size_px", (800, 600))))
    settings.setOutputDpi(96)
    settings.setBackgroundColor(QColor("white"))
    extent = QgsRectangle(*wish["extent"]) if "extent" in wish else layers[0].extent()
    settings.setExtent(extent)
    context = QgsExpressionContext()
    context.appendScope(QgsExpressionContextUtils.globalScope())
    context.appendScope(QgsExpressionContextUtils.mapSettingsScope(settings))
    settings.setExpressionContext(context)
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(wish["png"])
    return settings.scale()


def lay_out(layers, wish):
    """The picture of the map with its legend at the right."""
    project = QgsProject.instance()
    project.setCrs(layers[0].crs())
    project.setEllipsoid(layers[0].crs().ellipsoidAcronym())
    layout = QgsPrintLayout(project)
    layout.initializeDefaults()
    width, height = (side * MM_PX for side in wish.get("size_px", (800, 600)))
    legend_width = 80
    layout.pageCollection().page(0).setPageSize(QgsLayoutSize(width, height))
    drawn = QgsLayoutItemMap(layout)
    drawn.setLayers(layers)
    layout.addLayoutItem(drawn)
    drawn.attemptMove(QgsLayoutPoint(0, 0))
    drawn.attemptResize(QgsLayoutSize(width - legend_width, height))
    extent = QgsRectangle(*wish["extent"]) if "extent" in wish else layers[0].extent()
    drawn.zoomToExtent(extent)
    legend = QgsLayoutItemLegend(layout)
    tree = QgsLayerTree()
    for layer in layers:
        if isinstance(layer, QgsVectorLayer):
            tree.addLayer(layer)
    legend.model().setRootGroup(tree)
    legend.setResizeToContents(True)
    layout.addLayoutItem(legend)
    legend.attemptMove(QgsLayoutPoint(width - legend_width, 0))
    legend.refresh()
    settings = QgsLayoutExporter.ImageExportSettings()
    settings.dpi = 96
    QgsLayoutExporter(layout).exportToImage(wish["png"], settings)
    return drawn.scale()


def fill_in(layer, rows, png):
    """Fill in and save the form of each row, as a person does. Returns the choices that it offers."""
    choices = {}
    layer.startEditing()
    for row in rows:
        (feature,) = layer.getFeatures(QgsFeatureRequest().setFilterExpression(row.pop("where")))
        form = QgsAttributeForm(layer, feature)
        form.setMode(QgsAttributeEditorContext.SingleEditMode)
        form.resize(640, 560)
        form.show()
        QgsApplication.processEvents()
        for column, text in row.items():
            (widget,) = (each for kind in (QComboBox, QLineEdit) for each in form.findChildren(kind, column))
            assert widget.isEnabled(), column
            if isinstance(widget, QComboBox):
                choices[column] = [widget.itemText(index) for index in range(widget.count())]
                widget.setCurrentIndex(0 if text is None else choices[column].index(text))
            else:
                QTest.mouseClick(widget, Qt.LeftButton)
                QTest.keyClicks(widget, text)
        form.save()
        if png:
            form.grab().save(png)
    assert layer.commitChanges(), layer.commitErrors()
    return choices


def main():
    wish = json.loads(sys.argv[1])
    app = QgsApplication([], "edit" in wish)  # forms need windows
    app.initQgis()
    project = QgsProject.instance()
    vectors = [
        QgsVectorLayer(source, source.rpartition("=")[2].rpartition("/")[2], "ogr")
        for source in wish["layers"]
    ]
    report = {"qgis": Qgis.QGIS_VERSION}
    report["layers"] = [describe(layer) if layer.isValid() else None for layer in vectors]
    if "edit" in wish:
        QgsGui.editorWidgetRegistry().initEditors()
        project.addMapLayers(vectors)
        report["choices"] = [
            fill_in(layer, rows, wish.get("form")) for layer, rows in zip(vectors, wish["edit"], strict=True)
        ]
    if all(report["layers"]) and "png" in wish:
        layers = list(vectors)
        if "under" in wish:
            layers.append(QgsRasterLayer(wish["under"], "image"))
        project.addMapLayers(layers)
        report["scale"] = (lay_out if wish.get("legend") else draw)(layers, wish)
    print(json.dumps(report, default=str), flush=True)
    os._exit(0)  # QGIS 3.22 dies on the way out of an interpreter


main()
