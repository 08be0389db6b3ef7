"""Requests made up from the API's own description: none may fail inside, and every status must be a described one."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_headers_conformance, status_code_conformance
from server.live import Live

from sensorium.server.openapi import describe_api

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
API = schemathesis.openapi.from_dict(describe_api())
EXAMPLES = 25
"""Requests for each route."""


@API.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_made_up_requests(case: Any, live: Live):
    bounded(case.body)
    response = case.call(base_url=live.url, timeout=60)
    if response.status_code == 501:
        return  # another method of that path, which says by name that it is not served
    case.validate_response(response, checks=[not_a_server_error, status_code_conformance, response_headers_conformance])
    assert live.request("GET", "/health")[0] == 200


def bounded(body: Any) -> None:
    """Answers stay short: it is not their length that is tried here."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(body.get(name), int) and body[name] > 8:
                body[name] = 8
