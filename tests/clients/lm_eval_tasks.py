"""Three small tasks for lm-eval, made from files of this repository: no data set is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from sensorium.demo import ASSETS

ITEMS = Path(__file__).parent / "lm_eval_items.jsonl"


def _items(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    return {"test": Dataset.from_list([json.loads(line) for line in ITEMS.read_text("utf-8").splitlines()])}


def _scenes(**_: Any) -> dict[str, Any]:
    from datasets import Dataset

    cases = json.loads((ASSETS / "demo.json").read_text("utf-8"))
    return {"test": Dataset.from_list([case for case in cases if case["file"] in ("scene.png", "sign.jpg")])}


def _picture(doc: dict[str, Any]) -> list[Image.Image]:
    with Image.open(ASSETS / doc["file"]) as picture:
        return [picture.convert("RGB")]


def _exact(name: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True}]


CHOICE: dict[str, Any] = {
    "task": "choice",
    "custom_dataset": _items,
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "target_delimiter": "",
    "doc_to_target": "{{answer}}",
    "metric_list": _exact("acc"),
}
WRITING: dict[str, Any] = {
    "task": "writing",
    "custom_dataset": _items,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": _exact("exact_match"),
}
SCENES: dict[str, Any] = {
    "task": "scenes",
    "custom_dataset": _scenes,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_image": _picture,
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{expected}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64},
    "metric_list": _exact("exact_match"),
}
