"""Kind of model for tests, `text:NAME`: it reads any text, and says that nothing changed."""

from __future__ import annotations

import json
from typing import Any

from deltavlm.model.config import RuntimeOptions
from deltavlm.model.interface import Question, Reply
from deltavlm.model.kinds import ModelSpec
from deltavlm.tasks import TaskName
from deltavlm.tasks.phrasing import GENERIC
from tests.scripted_model import ScriptedModel

KIND = {"text": "tests.text_reader"}
"""Entry of `kinds.KINDS`."""

_NOTHING = json.dumps({"new_roads": 0, "new_buildings": 0, "road_cells": [], "building_cells": []})
DENIALS: dict[TaskName, str] = {
    "caption": "there is no difference",
    "change": "No.",
    "count": _NOTHING,
    "location": _NOTHING,
}


_BY_PROMPT = {GENERIC.phrases[task].prompt: text for task, text in DENIALS.items()}


def deny(before: Any, after: Any, question: Question) -> Reply:
    return Reply(_BY_PROMPT.get(question.prompt, "nothing to say"), 0.2)


def text_reader(name: str = "text:any", **fields: Any) -> ScriptedModel:
    """Model of this kind, with other `fields` of `ScriptedModel`."""
    identity = {"name": name, "fingerprint": "a" * 16, "training_gsd_m": None}
    model = ScriptedModel(
        **({"script": deny, "phrasebook": "generic", "reads_context": True, **identity} | fields)
    )
    model.masks = lambda encoded: None  # type: ignore[method-assign]
    return model


def read_spec(name: str, options: RuntimeOptions) -> ModelSpec:
    return ModelSpec(name, 32, None, False, 0)


def load(name: str, options: RuntimeOptions) -> ScriptedModel:
    return text_reader(name)
