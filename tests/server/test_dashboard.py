"""The files in deploy/ ask for metrics that a live server has, by labels that those have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from server.bodies import chat, image, png
from server.live import Live, user
from server.samples import data_url, picture

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
METRIC = re.compile(r"\b(sensorium:\w+|(?:http|process)_\w+)(?:\{([^}]*)\})?")
FROM_PROMETHEUS = {"instance", "job"}


@pytest.fixture(scope="module")
def labels(live: Live) -> dict[str, set[str]]:
    """Sample name -> its labels, once there was one request of every kind."""
    assert live.post(png(picture()))[0] == 200
    assert live.post(image(data_url("image/png", b"none")))[0] == 400
    assert live.post(chat(messages=user("word " * 5000)))[0] == 400
    text = live.request("GET", "/metrics")[2].decode()
    families = list(text_string_to_metric_families(text))
    found = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    # Counted when something is full, which it is not here.
    assert any(family.name == "sensorium:admission_rejections" for family in families)
    return {"sensorium:admission_rejections_total": {"model_name", "engine", "reason"}, **found}


def dashboard() -> dict[str, object]:
    return json.loads((DEPLOY / "grafana.json").read_text())


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_what_is_asked_for_is_there(labels: dict[str, set[str]], expression: str):
    used = METRIC.findall(expression)
    assert used
    assert expression.count("(") == expression.count(")")
    for name, selector in used:
        assert name in labels, name
        known = labels[name] | FROM_PROMETHEUS
        assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= known
        for names in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in names.split(",")} <= known, name


def test_panels_have_places_of_their_own():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_example_for_prometheus_names_its_rules():
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert [(DEPLOY / name).is_file() for name in config["rule_files"]] == [True]
