"""Processing algorithms: each turns its parameters into one command of `deltavlm`, and loads the result."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputNumber,
    QgsProcessingOutputString,
    QgsProcessingOutputVectorLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterPoint,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
    QgsProcessingUtils,
    QgsProviderRegistry,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QCoreApplication, QThread

from . import program
from .program import ProgramError
from .provider import find_program, icon, private_folder
from .translation import tr

PARTLY = 3  # exit code: written, but some chips failed
_FLAG = re.compile(r"--[a-z][a-z-]+")


class Algorithm(QgsProcessingAlgorithm):
    """Algorithm that runs commands of the program; a subclass names its parameters and the arguments."""

    NAME = TITLE = HELP = ""

    def __init__(self) -> None:
        super().__init__()
        self.program = ""
        self.input_arguments: list[str] = []  # of `prepareAlgorithm`, in the thread in which layers are
        self.paths: dict[str, str] = {}  # outputs by parameter

    def name(self) -> str:
        return self.NAME

    def displayName(self) -> str:
        return self.TITLE

    def shortHelpString(self) -> str:
        return self.HELP

    def group(self) -> str:
        return ""

    def groupId(self) -> str:
        return ""

    def icon(self) -> Any:
        return icon()

    def createInstance(self) -> Any:
        return type(self)()

    # what a subclass says

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        """Arguments of the command, without outputs and what all have."""
        raise NotImplementedError

    def output_arguments(self) -> list[str]:
        """Arguments of the outputs in `paths`."""
        raise NotImplementedError

    def results(self, summary: dict[str, Any], context: Any) -> dict[str, Any]:
        """Outputs of the algorithm, from the JSON summary of the command."""
        raise NotImplementedError

    # what QGIS calls

    def canExecute(self) -> tuple[bool, str]:
        try:
            find_program()
        except ProgramError as error:
            return False, str(error)
        return True, ""

    def checkParameterValues(self, parameters: Any, context: Any) -> tuple[bool, str]:
        accepted, message = super().checkParameterValues(parameters, context)
        if not accepted:
            return False, message
        try:
            program.check_version(find_program())
            self.check_parameters(parameters, context)
        except (ProgramError, QgsProcessingException) as error:
            return False, str(error)
        return True, ""

    def prepareAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> bool:
        try:
            self.program = find_program()
            version = program.check_version(self.program)
        except ProgramError as error:
            raise QgsProcessingException(str(error)) from error
        feedback.pushInfo(f"deltavlm {version}: {self.program}")
        self.check_parameters(parameters, context)
        self.input_arguments = self.arguments(parameters, context, feedback)
        return True

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        self.read_outputs(parameters, context)
        result = self.execute([*self.input_arguments, *self.output_arguments()], feedback)
        if result.canceled:
            return {}
        objects = result.objects()
        return self.results(objects[-1] if objects else {}, context)

    # helpers

    def read_outputs(self, parameters: Any, context: Any) -> None:
        """Fill `paths`; the context of `prepareAlgorithm` would lose the layers that are to be loaded."""
        for definition in self.destinationParameterDefinitions():
            name = definition.name()
            if name in parameters and not _sink(parameters[name]):
                continue  # as batch mode gives an output that is left out; QGIS would load a layer of no name
            is_file = definition.type() == "fileDestination"
            read = self.parameterAsFileOutput if is_file else self.parameterAsOutputLayer
            path = read(parameters, name, context)
            if path:
                self.paths[name] = str(path)

    def execute(self, arguments: Sequence[str], feedback: Any) -> program.Result:
        """Run one command with messages and progress in the log.

        Raises: QgsProcessingException with the program's own message, where it failed.
        """
        command = [self.program, *arguments, "--json", "--log-format", "json"]
        feedback.pushCommandInfo(shlex.join(command))

        def show(message: dict[str, Any]) -> None:
            text = self.with_titles(message["message"])
            if message.get("total"):
                feedback.setProgress(100 * message["done"] / message["total"])
                feedback.setProgressText(text)
            elif message["level"] == "warning":
                feedback.pushWarning(text)
            elif message["level"] == "info":
                feedback.pushInfo(text)

        try:
            result = program.run(command, is_canceled=lambda: _is_canceled(feedback), on_message=show)
        except ProgramError as error:
            raise QgsProcessingException(str(error)) from error
        text = self.with_titles("; ".join(result.errors))
        if result.canceled:
            feedback.pushInfo(tr("Canceled: {}").format(text or self.program))
        elif result.code == PARTLY:
            feedback.reportError(text, False)
        elif result.code != 0:
            raise QgsProcessingException(text or tr("deltavlm ended with exit code {}").format(result.code))
        return result

    def with_titles(self, text: str) -> str:
        """Message of the program with the titles of parameters beside the flags that stand for them."""
        titles = {flag: self.parameterDefinition(name) for name, flag in FLAGS.items()}

        def titled(match: Any) -> str:
            definition = titles.get(match[0])
            return f'"{definition.description()}"' if definition is not None else str(match[0])

        return _FLAG.sub(titled, text)

    def check_parameters(self, parameters: Any, context: Any) -> None:
        """Raises: QgsProcessingException for a layer or a folder that the program could not use."""
        for definition in self.parameterDefinitions():
            name = definition.name()
            if parameters.get(name) in (None, ""):
                continue
            if definition.type() == "raster":
                allow_no_crs = name not in ("BEFORE", "AFTER") or self.parameterAsBool(
                    parameters, "ALLOW_NO_CRS", context
                )
                _check_raster(self.parameterAsRasterLayer(parameters, name, context), allow_no_crs)
            elif definition.type() == "vector":
                _source_path(self.parameterAsVectorLayer(parameters, name, context))
            elif definition.type() == "multilayer":
                for layer in self.parameterAsLayerList(parameters, name, context):
                    _source_path(layer)
            elif definition.isDestination():
                _check_folder(definition.description(), parameters[name])

    def raster(self, parameters: Any, name: str, context: Any) -> str:
        """File, or address for GDAL, of a raster layer."""
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, name))
        uri = QgsProviderRegistry.instance().decodeUri("gdal", layer.source())
        return str(uri.get("path") or layer.source())

    def vector(self, parameters: Any, name: str, context: Any, feedback: Any) -> str:
        """File of a vector layer, which may have others in it."""
        layer = self.parameterAsVectorLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(self.invalidSourceError(parameters, name))
        _warn_of_edits(layer, feedback)
        return _source_path(layer)

    def areas(self, parameters: Any, name: str, context: Any, feedback: Any) -> str:
        """`FILE:LAYER` of a layer of polygons; one that is in no file, or a selection, is saved for it."""
        path, layer = self.parameterAsCompatibleSourceLayerPathAndLayerName(
            parameters, name, context, ["gpkg", "shp", "geojson", "fgb"], "gpkg", feedback
        )
        return f"{path}:{layer}" if layer else str(path)

    def text(self, parameters: Any, name: str, context: Any) -> str:
        return str(self.parameterAsString(parameters, name, context) or "").strip()

    def number(self, flag: str, parameters: Any, name: str, context: Any) -> list[str]:
        """A flag with its number; nothing where it is left out."""
        if parameters.get(name) in (None, ""):
            return []
        return [f"{flag}={self.parameterAsDouble(parameters, name, context):.12g}"]

    def switches(self, parameters: Any, context: Any) -> list[str]:
        """Flags of the boolean parameters that are ticked."""
        names = [name for name in FLAGS if self.parameterDefinition(name) is not None]
        return [
            FLAGS[name]
            for name in names
            if self.parameterDefinition(name).type() == "boolean"
            and self.parameterAsBool(parameters, name, context)
        ]

    def extra(self, parameters: Any, context: Any) -> list[str]:
        """Words of the parameter for other flags."""
        return shlex.split(self.text(parameters, "EXTRA", context))

    def load_instead(self, path: str, layers: dict[str, str], context: Any) -> None:
        """Load these layers (name -> title) of the file, where the person wants the file to be loaded."""
        if not context.willLoadLayerOnCompletion(path):
            return
        planned = context.layersToLoadOnCompletion()
        details = planned.pop(path)
        is_temporary = Path(QgsProcessingUtils.tempFolder()) in Path(path).parents
        of_pair = "" if is_temporary else f" ({Path(path).stem})"  # tells the rows of a batch apart
        for number, (name, title) in enumerate(layers.items()):
            named = title + of_pair
            detail = QgsProcessingContext.LayerDetails(
                named, details.project, details.outputName, QgsProcessingUtils.LayerHint.Vector
            )
            if hasattr(detail, "layerSortKey"):  # QGIS 3.32: the highest is drawn last
                detail.layerSortKey = len(layers) - number
            STYLES.append(_Style(named))
            detail.setPostProcessor(STYLES[-1])
            planned[_layer(path, name)] = detail
        context.setLayersToLoadOnCompletion(planned)

    # parameters that several have

    def add_pair(self) -> None:
        self.addParameter(QgsProcessingParameterRasterLayer("BEFORE", tr("Earlier image")))
        self.addParameter(QgsProcessingParameterRasterLayer("AFTER", tr("Later image")))

    def add_model(self) -> None:
        title = tr("Model: a name, a folder, hf:MODEL or openai:URL#MODEL")
        self.addParameter(QgsProcessingParameterString("MODEL", title, "nano"))

    def add_overwrite(self) -> None:
        self.addParameter(
            QgsProcessingParameterBoolean("OVERWRITE", tr("Replace existing output files"), False)
        )

    def add_threshold(self) -> None:
        self.add_number("THRESHOLD", tr("Lowest score of change of a changed chip"), maximum=1, advanced=True)

    def add_number(
        self,
        name: str,
        title: str,
        *,
        maximum: float = 1e9,
        default: float | None = None,
        advanced: bool = False,
    ) -> None:
        """Number from 0 up, which may be left out."""
        kind = QgsProcessingParameterNumber.Double
        number = QgsProcessingParameterNumber(name, title, kind, default, True, 0, maximum)
        self.add_advanced(number) if advanced else self.addParameter(number)

    def add_rasters(self) -> None:
        """Options of reading."""
        self.addParameter(
            QgsProcessingParameterBoolean(
                "REGISTER", tr("Correct a shift between the images (up to 8 pixels)"), False
            )
        )
        self.add_advanced(
            QgsProcessingParameterBoolean(
                "ALLOW_NO_CRS", tr("Accept images without a CRS (results in pixel coordinates)"), False
            )
        )

    def add_extra(self) -> None:
        title = tr("Other flags, as deltavlm --help lists them")
        self.add_advanced(QgsProcessingParameterString("EXTRA", title, "", optional=True))

    def add_advanced(self, definition: Any) -> None:
        definition.setFlags(definition.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(definition)

    def add_area(self) -> None:
        self.addParameter(
            QgsProcessingParameterExtent("EXTENT", tr("Only chips in this extent"), optional=True)
        )
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                "AOI", tr("Only chips in these polygons"), [QgsProcessing.TypeVectorPolygon], optional=True
            )
        )

    def area_flags(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        flags = []
        if parameters.get("EXTENT") not in (None, ""):
            crs = self.parameterAsExtentCrs(parameters, "EXTENT", context)
            if not crs.authid():
                crs = QgsCoordinateReferenceSystem("EPSG:4326")
            box = self.parameterAsExtent(parameters, "EXTENT", context, crs)
            sides = (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
            flags += [f"--bbox={','.join(f'{side:.12g}' for side in sides)}", f"--bbox-crs={crs.authid()}"]
        if parameters.get("AOI") not in (None, ""):
            flags += ["--aoi", self.areas(parameters, "AOI", context, feedback)]
        return flags


#: parameters that stand for one flag each
FLAGS = {
    "OVERWRITE": "--overwrite",
    "ALLOW_NO_CRS": "--allow-no-crs",
    "REGISTER": "--register",
    "POLYGONS": "--polygons",
    "REVIEW": "--review",
    "THRESHOLD": "--threshold",
    "AOI": "--aoi",
    "PROBABILITY": "--probability",
    "MASK_THRESHOLD": "--mask-threshold",
}


class _Style(QgsProcessingLayerPostProcessorInterface):
    """Style that is stored in the file, and name, for a loaded layer; Processing names it as in the file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def postProcessLayer(self, layer: Any, context: Any, feedback: Any) -> None:
        layer.setName(self.name)
        layer.loadDefaultStyle()
        layer.triggerRepaint()


STYLES: list[_Style] = []  # QGIS deletes what it is given with its context, and Python must not do it earlier


def _layer(path: str, name: str) -> str:
    return f"{path}|layername={name}"


def _with_flags(note: str) -> str:
    """Note of a plan, which names parameters of Python, with flags in their place: `register=True`."""
    return re.sub(r"`([a-z_]+)=True`", lambda match: "--" + match[1].replace("_", "-"), note)


def _check_raster(layer: Any, allow_no_crs: bool) -> None:
    """Raises: QgsProcessingException for a web service, and a file without CRS."""
    if layer is None:
        return  # Processing says so itself
    if not isinstance(layer, QgsRasterLayer) or layer.providerType() != "gdal":
        raise QgsProcessingException(
            tr(
                "The layer {} is a web service ({}), and deltavlm reads files; save it as GeoTIFF first"
                " (layer menu, Export > Save As)"
            ).format(layer.name(), layer.providerType())
        )
    if allow_no_crs or layer.dataProvider().crs().isValid():
        return
    guess = layer.crs().authid()
    known = tr(" (QGIS takes it to be {}, which the file does not say)").format(guess) if guess else ""
    raise QgsProcessingException(
        tr(
            "The file of the layer {} has no CRS{}; write one into it (Raster > Projections > Assign"
            " Projection), or tick 'Accept images without a CRS' in the advanced parameters"
        ).format(layer.name(), known)
    )


def _source_path(layer: Any) -> str:
    """File of a vector layer. Raises: QgsProcessingException if it is in none."""
    if layer is None:
        return ""
    if layer.providerType() != "ogr":
        raise QgsProcessingException(
            tr("The layer {} is not in a file ({}); choose a layer of an output of deltavlm").format(
                layer.name(), layer.providerType()
            )
        )
    return str(QgsProviderRegistry.instance().decodeUri("ogr", layer.source())["path"])


def _is_canceled(feedback: Any) -> bool:
    """Whether Cancel was pressed; batch mode runs in the thread of the windows, which must stay alive."""
    application = QCoreApplication.instance()
    if QThread.currentThread() == application.thread():
        application.processEvents()
    return bool(feedback.isCanceled())


def _warn_of_edits(layer: Any, feedback: Any) -> None:
    if layer.isModified():
        text = tr("The layer {} has edits that are not saved; deltavlm reads the file without them")
        feedback.pushWarning(text.format(layer.name()))


def _sink(value: Any) -> Any:
    """Path of an output, or what else QGIS was given for it."""
    sink = getattr(value, "sink", value)
    return sink.staticValue() if hasattr(sink, "staticValue") else sink


def _check_folder(title: str, value: Any) -> None:
    """Raises: QgsProcessingException if the folder of an output cannot be written."""
    text = _sink(value)
    if not isinstance(text, str) or text in ("", QgsProcessing.TEMPORARY_OUTPUT):
        return
    folder = Path(text).expanduser().absolute().parent
    if not folder.is_dir():
        message = tr("There is no folder {}; choose another file for '{}'")
        raise QgsProcessingException(message.format(folder, title))
    if not os.access(folder, os.W_OK | os.X_OK):
        message = tr("No permission to write into {}; choose another file for '{}'")
        raise QgsProcessingException(message.format(folder, title))


class Analyze(Algorithm):
    """`deltavlm analyze` for one pair; batch mode takes many."""

    NAME = "analyze"
    TITLE = tr("Analyze a pair of images")
    HELP = tr(
        "Cuts two images of the same area into chips, asks a model about each what changed, and writes the"
        " answers as polygons: whether it changed and with what score, a caption, new buildings and roads,"
        " and the outlines of changed ground. The layers open styled.\n\nCancel keeps what was answered: run"
        " it again with the same output file to go on."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        self.add_pair()
        self.add_model()
        self.addParameter(
            QgsProcessingParameterBoolean("POLYGONS", tr("Outline what changed (layer changes)"), True)
        )
        self.add_area()
        self.add_rasters()
        self.add_threshold()
        self.add_advanced(
            QgsProcessingParameterFile(
                "QUESTIONS",
                tr("Questions (YAML) instead of the built-in ones"),
                extension="yaml",
                optional=True,
            )
        )
        self.add_extra()
        self.add_overwrite()
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", tr("Chips with answers")))
        self.addParameter(
            QgsProcessingParameterRasterDestination(
                "PROBABILITY", tr("Probability of change"), optional=True, createByDefault=False
            )
        )
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "HTML", tr("Report"), "HTML (*.html)", optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputVectorLayer("CHANGES", tr("Outlines of changed ground")))
        self.addOutput(QgsProcessingOutputVectorLayer("LOCATIONS", tr("Cells named in answers")))
        self.addOutput(QgsProcessingOutputNumber("CHIP_COUNT", tr("Number of chips")))
        self.addOutput(QgsProcessingOutputNumber("CHANGED_COUNT", tr("Number of changed chips")))

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        questions = self.text(parameters, "QUESTIONS", context)
        return [
            "analyze",
            self.raster(parameters, "BEFORE", context),
            self.raster(parameters, "AFTER", context),
            *("--model", self.text(parameters, "MODEL", context) or "nano"),
            *(["--questions", questions] if questions else []),
            *self.number("--threshold", parameters, "THRESHOLD", context),
            *self.area_flags(parameters, context, feedback),
            *self.switches(parameters, context),
            *self.extra(parameters, context),
        ]

    def output_arguments(self) -> list[str]:
        flags = {"OUTPUT": "-o", "PROBABILITY": "--probability", "HTML": "--html"}
        return [word for name, path in self.paths.items() for word in (flags[name], path)]

    def results(self, summary: dict[str, Any], context: Any) -> dict[str, Any]:
        path, has_polygons = self.paths["OUTPUT"], "--polygons" in self.input_arguments
        layers = {"changes": tr("Changes")} if has_polygons else {}
        layers |= {"chips": tr("Chips"), "locations": tr("Locations")}
        self.load_instead(path, layers, context)
        outputs: dict[str, Any] = {
            **self.paths,
            "OUTPUT": _layer(path, "chips"),
            "LOCATIONS": _layer(path, "locations"),
            "CHIP_COUNT": summary.get("chips"),
            "CHANGED_COUNT": summary.get("changed"),
        }
        if has_polygons:
            outputs["CHANGES"] = _layer(path, "changes")
        return outputs


class Ask(Algorithm):
    """`deltavlm ask` at a point, or about every chip."""

    NAME = "ask"
    TITLE = tr("Ask a question")
    HELP = tr(
        "Asks your own questions about two images of the same area, one a line: about a small pair as a"
        " whole, about a large one at the point that you name. The answer is in the log, and an output of the"
        " algorithm. With an output layer every chip is asked instead.\n\nThe built-in model answers"
        " questions about buildings, roads, trees, water and ground."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        self.add_pair()
        self.addParameter(QgsProcessingParameterString("QUESTION", tr("Question"), multiLine=True))
        self.addParameter(QgsProcessingParameterPoint("POINT", tr("Place"), optional=True))
        self.add_model()
        self.add_rasters()
        self.add_extra()
        self.add_overwrite()
        self.addParameter(
            QgsProcessingParameterVectorDestination(
                "OUTPUT", tr("Chips with answers (asks every chip)"), optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputString("ANSWER", tr("Answers, one a line")))
        self.addOutput(QgsProcessingOutputString("STATUS", tr("answered, or unsupported")))
        self.addOutput(
            QgsProcessingOutputNumber("SCORE", tr("Probability of yes, of the last yes/no question"))
        )

    def check_parameters(self, parameters: Any, context: Any) -> None:
        super().check_parameters(parameters, context)
        if not self.text(parameters, "QUESTION", context):
            raise QgsProcessingException(tr("Write a question"))
        if all(parameters.get(name) not in (None, "") for name in ("POINT", "OUTPUT")):
            raise QgsProcessingException(tr("Give a place, or an output layer for all chips, not both"))

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        questions = self.text(parameters, "QUESTION", context).splitlines()
        flags = self.switches(parameters, context)
        if parameters.get("OUTPUT") in (None, ""):
            flags = [flag for flag in flags if flag != "--overwrite"]
        window = []
        if parameters.get("POINT") not in (None, ""):
            lonlat = QgsCoordinateReferenceSystem("EPSG:4326")
            point = self.parameterAsPoint(parameters, "POINT", context, lonlat)
            window.append(f"--at={point.x():.9f},{point.y():.9f}")
        return [
            "ask",
            self.raster(parameters, "BEFORE", context),
            self.raster(parameters, "AFTER", context),
            *(f"--question={line.strip()}" for line in questions if line.strip()),
            *window,
            *("--model", self.text(parameters, "MODEL", context) or "nano"),
            *flags,
            *self.extra(parameters, context),
        ]

    def output_arguments(self) -> list[str]:
        return ["--all-chips", "-o", self.paths["OUTPUT"]]

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        if parameters.get("OUTPUT") not in (None, ""):
            return super().processAlgorithm(parameters, context, feedback)
        records = self.execute(self.input_arguments, feedback).objects()
        for record in records:
            feedback.pushInfo(f"{record['question']} {record['answer']}")
        if not records:
            return {}
        outputs = {
            "ANSWER": "\n".join(record["answer"] for record in records),
            "STATUS": records[-1]["status"],
        }
        scores = [record["score"] for record in records if isinstance(record["value"], bool)]
        return outputs | ({"SCORE": scores[-1]} if scores else {})

    def results(self, summary: dict[str, Any], context: Any) -> dict[str, Any]:
        path = self.paths["OUTPUT"]
        self.load_instead(path, {"chips": tr("Chips"), "locations": tr("Locations")}, context)
        return {"OUTPUT": _layer(path, "chips")}


class CheckPair(Algorithm):
    """`deltavlm analyze --dry-run`."""

    NAME = "checkpair"
    TITLE = tr("Check a pair (dry run)")
    HELP = tr(
        "Checks whether two images can be compared, and says what an analysis would do: CRS, bands, pixel"
        " size, overlap and shift of the images, number of chips, time and memory. Writes nothing."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        self.add_pair()
        self.add_model()
        self.add_area()
        self.add_rasters()
        self.add_extra()
        self.addOutput(QgsProcessingOutputNumber("CHIP_COUNT", tr("Number of chips")))
        self.addOutput(QgsProcessingOutputNumber("PIXEL_SIZE", tr("Pixel size on the ground, meters")))
        self.addOutput(QgsProcessingOutputNumber("OVERLAP", tr("Share of the earlier image that both cover")))
        self.addOutput(QgsProcessingOutputNumber("SECONDS", tr("Estimated time of an analysis, seconds")))
        self.addOutput(QgsProcessingOutputString("NOTES", tr("Notes about the pair")))

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        return [
            "analyze",
            "--dry-run",
            self.raster(parameters, "BEFORE", context),
            self.raster(parameters, "AFTER", context),
            *("-o", QgsProcessingUtils.generateTempFilename("plan.gpkg")),
            *("--model", self.text(parameters, "MODEL", context) or "nano"),
            *self.area_flags(parameters, context, feedback),
            *self.switches(parameters, context),
            *self.extra(parameters, context),
        ]

    def output_arguments(self) -> list[str]:
        return []

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        outputs = super().processAlgorithm(parameters, context, feedback)
        for name, value in outputs.items():
            feedback.pushInfo(f"{self.outputDefinition(name).description()}: {value}")
        return outputs

    def results(self, summary: dict[str, Any], context: Any) -> dict[str, Any]:
        outputs = {
            "CHIP_COUNT": summary.get("chips"),
            "PIXEL_SIZE": summary.get("gsd_m"),
            "OVERLAP": summary.get("overlap_share"),
            "SECONDS": summary.get("estimate", {}).get("seconds"),
            "NOTES": self.with_titles("\n".join(map(_with_flags, summary.get("notes", ())))),
        }
        return {name: value for name, value in outputs.items() if value is not None}


class Report(Algorithm):
    """`deltavlm report`."""

    NAME = "report"
    TITLE = tr("Report")
    HELP = tr(
        "Renders an output of 'Analyze a pair of images' as one HTML file with both images, answers, filters"
        " and totals, which needs no server. A quicklook is a PNG of both images with the changed chips"
        " outlined."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        vector = [QgsProcessing.TypeVector]
        self.addParameter(
            QgsProcessingParameterVectorLayer("INPUT", tr("Layer of an output of deltavlm"), vector)
        )
        self.addParameter(
            QgsProcessingParameterBoolean(
                "REVIEW", tr("With forms to accept or reject chips and polygons"), False
            )
        )
        self.add_threshold()
        self.add_extra()
        self.add_overwrite()
        self.addParameter(QgsProcessingParameterFileDestination("OUTPUT", tr("Report"), "HTML (*.html)"))
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "QUICKLOOK", tr("Quicklook"), "PNG (*.png)", optional=True, createByDefault=False
            )
        )

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        return [
            "report",
            self.vector(parameters, "INPUT", context, feedback),
            *self.number("--threshold", parameters, "THRESHOLD", context),
            *self.switches(parameters, context),
            *self.extra(parameters, context),
        ]

    def output_arguments(self) -> list[str]:
        flags = {"OUTPUT": "-o", "QUICKLOOK": "--quicklook"}
        return [word for name, path in self.paths.items() for word in (flags[name], path)]

    def results(self, summary: dict[str, Any], context: Any) -> dict[str, Any]:
        return dict(self.paths)


class Summarize(Algorithm):
    """`deltavlm summarize`: a table, a map of areas, or both."""

    NAME = "summarize"
    TITLE = tr("Summarize by area")
    HELP = tr(
        "Adds up outputs of 'Analyze a pair of images': changed ground, new buildings and roads, chips not"
        " analyzed, and what a review says; as a whole, or by the polygons of a layer, by grid cell, by H3"
        " cell or by pair. Writes a table or a document (.csv, .md, .html), and a styled map of the areas."
    )
    DIVISIONS = ("", "areas", "grid", "h3", "pair")

    def initAlgorithm(self, configuration: Any = None) -> None:
        vector = QgsProcessing.TypeVector
        self.addParameter(
            QgsProcessingParameterMultipleLayers("INPUTS", tr("Layers of outputs of deltavlm"), vector)
        )
        titles = [tr("as a whole"), tr("polygons of a layer"), tr("grid cells"), tr("H3 cells"), tr("pairs")]
        self.addParameter(QgsProcessingParameterEnum("BY", tr("Divide by"), titles, defaultValue=0))
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                "AREAS", tr("Polygons to divide by"), [QgsProcessing.TypeVectorPolygon], optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterString("NAME_FIELD", tr("Field with their names"), "", optional=True)
        )
        self.add_number("CELL", tr("Side of a grid cell, meters"))
        self.add_threshold()
        self.add_extra()
        self.add_overwrite()
        self.addParameter(
            QgsProcessingParameterFileDestination(
                "TABLE",
                tr("Table or document"),
                "CSV (*.csv);;Markdown (*.md);;HTML (*.html)",
                optional=True,
                createByDefault=True,
            )
        )
        self.addParameter(
            QgsProcessingParameterVectorDestination(
                "OUTPUT", tr("Map of the areas"), optional=True, createByDefault=False
            )
        )
        self.addOutput(QgsProcessingOutputString("SUMMARY", tr("Totals as JSON")))

    def check_parameters(self, parameters: Any, context: Any) -> None:
        super().check_parameters(parameters, context)
        by_areas = self.DIVISIONS[self.parameterAsEnum(parameters, "BY", context)] == "areas"
        if by_areas != (parameters.get("AREAS") not in (None, "")):
            raise QgsProcessingException(
                tr("'Divide by: polygons of a layer' and a layer of 'Polygons to divide by' go together")
            )

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        by = self.DIVISIONS[self.parameterAsEnum(parameters, "BY", context)]
        layers = self.parameterAsLayerList(parameters, "INPUTS", context)
        for layer in layers:
            _warn_of_edits(layer, feedback)
        if by == "areas":
            by = self.areas(parameters, "AREAS", context, feedback)
        name_field = self.text(parameters, "NAME_FIELD", context)
        return [
            "summarize",
            *dict.fromkeys(map(_source_path, layers)),
            *(["--by", by] if by else []),
            *(["--name-field", name_field] if name_field else []),
            *self.number("--cell", parameters, "CELL", context),
            *self.number("--threshold", parameters, "THRESHOLD", context),
            *self.switches(parameters, context),
            *self.extra(parameters, context),
        ]

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        self.read_outputs(parameters, context)
        outputs, summary = self.paths, "{}"
        for target in [["-o", path] for path in outputs.values()] or [[]]:
            result = self.execute([*self.input_arguments, *target], feedback)
            if result.canceled:
                return {}
            summary = result.stdout.strip()
        path = outputs.get("OUTPUT")
        if path:
            self.load_instead(path, {"areas": tr("Areas")}, context)
            outputs = outputs | {"OUTPUT": _layer(path, "areas")}
        return outputs | {"SUMMARY": summary}


class Polygonize(Algorithm):
    """`deltavlm polygonize`."""

    NAME = "polygonize"
    TITLE = tr("Polygons from probability")
    HELP = tr(
        "Draws the outlines of changed ground again with another threshold, smallest area or class, from the"
        " raster 'Probability of change' of an analysis; no model runs. With the layer of chips the outlines"
        " of changed chips are drawn, with captions; with the raster alone those of all."
    )
    CLASSES = ("building", "road", "other")

    def initAlgorithm(self, configuration: Any = None) -> None:
        vector = [QgsProcessing.TypeVector]
        self.addParameter(
            QgsProcessingParameterVectorLayer(
                "INPUT", tr("Layer of an output of deltavlm"), vector, optional=True
            )
        )
        self.addParameter(
            QgsProcessingParameterRasterLayer(
                "PROBABILITY",
                tr("Probability of change (if not the one that was written with it)"),
                optional=True,
            )
        )
        title = tr("Lowest probability of a changed pixel")
        self.add_number("MASK_THRESHOLD", title, maximum=1, default=0.5)
        self.add_number("MIN_AREA", tr("Smallest area, square meters"))
        classes = [tr("building"), tr("road"), tr("other")]
        self.addParameter(
            QgsProcessingParameterEnum(
                "CLASSES", tr("Only these classes"), classes, allowMultiple=True, optional=True
            )
        )
        self.add_number("SIMPLIFY", tr("Tolerance for simplifying outlines, pixels"), advanced=True)
        self.add_number(
            "MERGE", tr("Merge polygons of one class up to this far apart, meters"), advanced=True
        )
        self.add_number("FILL_HOLES", tr("Fill holes smaller than this, square meters"), advanced=True)
        self.add_threshold()
        self.add_extra()
        self.add_overwrite()
        self.addParameter(QgsProcessingParameterVectorDestination("OUTPUT", tr("Outlines of changed ground")))
        self.addOutput(QgsProcessingOutputNumber("POLYGON_COUNT", tr("Number of polygons")))

    def check_parameters(self, parameters: Any, context: Any) -> None:
        super().check_parameters(parameters, context)
        if all(parameters.get(name) in (None, "") for name in ("INPUT", "PROBABILITY")):
            raise QgsProcessingException(tr("Give a layer of an output, or a raster of probabilities"))

    def arguments(self, parameters: Any, context: Any, feedback: Any) -> list[str]:
        raster = ""
        if parameters.get("PROBABILITY") not in (None, ""):
            raster = self.raster(parameters, "PROBABILITY", context)
        if parameters.get("INPUT") in (None, ""):
            source = [raster]
        else:
            source = [self.vector(parameters, "INPUT", context, feedback)]
            source += ["--probability", raster] if raster else []
        numbers = []
        if parameters.get("CLASSES") not in (None, ""):  # QGIS takes a missing list of an enumeration as [0]
            numbers = self.parameterAsEnums(parameters, "CLASSES", context)
        chosen = [self.CLASSES[number] for number in numbers]
        return [
            "polygonize",
            *source,
            *(["--class", ",".join(chosen)] if chosen else []),
            *self.number("--mask-threshold", parameters, "MASK_THRESHOLD", context),
            *self.number("--min-area", parameters, "MIN_AREA", context),
            *self.number("--simplify", parameters, "SIMPLIFY", context),
            *self.number("--merge", parameters, "MERGE", context),
            *self.number("--fill-holes", parameters, "FILL_HOLES", context),
            *self.number("--threshold", parameters, "THRESHOLD", context),
            *self.switches(parameters, context),
            *self.extra(parameters, context),
        ]

    def output_arguments(self) -> list[str]:
        return ["-o", self.paths["OUTPUT"]]

    def results(self, summary: dict[str, Any], context: Any) -> dict[str, Any]:
        path = self.paths["OUTPUT"]
        self.load_instead(path, {"changes": tr("Changes")}, context)
        return {"OUTPUT": _layer(path, "changes"), "POLYGON_COUNT": summary.get("polygons")}


class Install(Algorithm):
    """Private environment of the program, made with uv."""

    NAME = "install"
    TITLE = tr("Install the program")
    HELP = tr(
        "Makes a private Python environment with uv, in the settings folder of QGIS, and installs deltavlm"
        " into it, with what it needs from the Python package index. Nothing is added to the Python of QGIS."
        " Not needed where deltavlm is installed already. Run it again to update; delete the folder to remove"
        " it."
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        title = tr("Download and install into {}").format(private_folder())
        self.addParameter(QgsProcessingParameterBoolean("AGREE", title, False))
        title = tr("Package: a name with a version, a wheel, or a clone of the repository")
        self.add_advanced(QgsProcessingParameterString("PACKAGE", title, "deltavlm"))
        self.addOutput(QgsProcessingOutputString("PROGRAM", tr("Path of the program")))

    def canExecute(self) -> tuple[bool, str]:
        try:
            program.find_uv()
        except ProgramError as error:
            return False, str(error)
        return True, ""

    def checkParameterValues(self, parameters: Any, context: Any) -> tuple[bool, str]:
        accepted, message = QgsProcessingAlgorithm.checkParameterValues(self, parameters, context)
        if accepted and not self.parameterAsBool(parameters, "AGREE", context):
            return False, tr("Nothing is installed unless 'Download and install' is ticked")
        return accepted, message

    def prepareAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> bool:
        if not self.parameterAsBool(parameters, "AGREE", context):
            raise QgsProcessingException(tr("Nothing is installed unless 'Download and install' is ticked"))
        return True

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> dict[str, Any]:
        folder = private_folder()
        requirement = self.text(parameters, "PACKAGE", context) or "deltavlm"
        try:
            for command in program.install_commands(program.find_uv(), folder, requirement):
                feedback.pushCommandInfo(shlex.join(command))
                result = program.run(
                    command,
                    is_canceled=lambda: _is_canceled(feedback),
                    on_message=lambda message: feedback.pushInfo(message["message"]),
                )
                if result.canceled:
                    return {}
                if result.code != 0:
                    raise QgsProcessingException(tr("uv failed; its messages are above"))
            path = str(program.private_program(folder))
            feedback.pushInfo(f"deltavlm {program.check_version(path)}: {path}")
        except ProgramError as error:
            raise QgsProcessingException(str(error)) from error
        return {"PROGRAM": path}


ALGORITHMS = (Analyze, Ask, CheckPair, Polygonize, Report, Summarize, Install)
