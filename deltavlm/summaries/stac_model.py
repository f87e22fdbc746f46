"""STAC item of a model, with the extension MLM (machine learning model)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

__all__ = ["mlm_name", "model_item", "model_item_name"]

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
MLM_TASKS = {  # task of a question -> task of the extension
    "caption": "image-captioning",
    "change": "scene-classification",
    "count": "regression",
    "location": "detection",
}

Item = dict[str, Any]


def model_item_name(run: Mapping[str, Any]) -> str:
    """File name of the item of a model, made of name and fingerprint."""
    return f"{_model_id(run)}.json"


def model_item(run: Mapping[str, Any], href: str | None = None) -> Item:
    """Item of the model of a run, without geometry and valid for any time.

    Args:
        run: provenance of an output.
        href: URL of the weights; by default a URN of name and fingerprint, which identifies them.
    """
    model, options = run["model"], run.get("options", {})
    name, side = str(model["name"]), int(model.get("chip_px") or options.get("chip_px") or 256)
    questions = run.get("questions", ())
    tasks = list(dict.fromkeys(MLM_TASKS.get(str(spec.get("task")), "generative") for spec in questions))
    image_input = {
        "shape": [-1, 3, side, side],
        "dim_order": ["batch", "channel", "height", "width"],
        "data_type": "uint8",
    }
    text_type = {"shape": [-1], "dim_order": ["batch"], "data_type": "other"}
    images = [
        {"name": date, "description": f"RGB of the {when} date", "bands": [], "input": image_input}
        for date, when in (("before", "earlier"), ("after", "later"))
    ]
    question = {"name": "question", "description": "English text", "bands": [], "input": text_type}
    score = {"shape": [-1], "dim_order": ["batch"], "data_type": "float32"}
    facts = {key: model.get(key) for key in ("fingerprint", "training_gsd_m", "chip_px", "dtype", "quantize")}
    torch = run.get("versions", {}).get("torch")
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM],
        "id": _model_id(run),
        "geometry": None,
        "properties": {
            "title": f"The model {name}",
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "mlm:name": mlm_name(name),
            "mlm:architecture": "DeltaVLM",
            "mlm:framework": "PyTorch",
            **({"mlm:framework_version": str(torch)} if torch else {}),
            "mlm:tasks": tasks,
            "mlm:input": [*images, question],
            "mlm:output": [
                {"name": "answer", "description": "English text", "tasks": tasks, "result": text_type},
                {
                    "name": "score",
                    "description": "Probability of yes, or mean log-probability of the answer's tokens",
                    "tasks": tasks,
                    "result": score,
                },
            ],
            "mlm:hyperparameters": {key: value for key, value in facts.items() if value is not None},
        },
        "links": [],
        "assets": {
            "weights": {
                "href": href or f"urn:deltavlm:{quote(name, safe='')}:{model.get('fingerprint')}",
                "type": "application/vnd.safetensors",
                "title": "Weights",
                "roles": ["mlm:model", "mlm:weights"],
                "mlm:artifact_type": "safetensors",
            }
        },
    }


def _model_id(run: Mapping[str, Any]) -> str:
    model = run["model"]
    return re.sub(r"[^\w.-]+", "_", f"{model.get('name')}-{model.get('fingerprint')}")


def mlm_name(name: str) -> str:
    """Name as MLM allows it: letters, digits and `_.-`, with a letter first and no mark at the end."""
    cleaned = re.sub(r"[^a-zA-Z0-9_.\-]+", "-", name).strip("-_.")
    return cleaned if re.match(r"[a-zA-Z].+", cleaned) else f"model-{cleaned}0"
