"""Templates that remote clients wrote, rendered in a process of their own that is killed when it takes too long."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jinja2

from sensorium.envs import read_environment
from sensorium.errors import OverloadedError, RequestError
from sensorium.models.template_rendering import TemplateRefusal, TooLong, environment, generate

BUSY_S = 60.0
"""The limit is processor time; this is for a machine that gives the process none."""
MAX_MEMORY = 1 << 30


def render(source: str, context: Mapping[str, Any], max_chars: int) -> str:
    """As template_rendering.generate, in a new process.

    RequestError for a template that takes too long, OverloadedError where the machine is too busy to tell.
    """
    limit_s = read_environment().chat_template_render_timeout
    job = {"source": source, "context": dict(context), "max_chars": max_chars, "limit_s": limit_s}
    env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sensorium.models.template_worker"],
            input=json.dumps(job).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            timeout=BUSY_S + limit_s,
            start_new_session=True,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        reason = "chat_template: it got no processor time to be rendered; try again later"
        raise OverloadedError(reason, param="chat_template", reason="templates") from None
    except ValueError:
        reason = f"chat_template: takes more than {limit_s:g} s or {MAX_MEMORY >> 20} MiB to render"
        raise RequestError(reason, param="chat_template") from None
    if answer["kind"] == "too long":
        raise TooLong
    if answer["kind"] == "refused":
        raise TemplateRefusal(answer["text"])
    if answer["kind"] == "wrong":
        raise RequestError(f"chat_template: {answer['text']}", param="chat_template")
    return answer["text"]


def main() -> None:
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    signal.setitimer(signal.ITIMER_PROF, job["limit_s"])  # its signal ends the process, whatever it is doing
    try:
        template = environment().from_string(job["source"])
        answer = {"kind": "text", "text": generate(template, job["context"], job["max_chars"])}
    except TooLong:
        answer = {"kind": "too long"}
    except TemplateRefusal as error:
        answer = {"kind": "refused", "text": str(error.message)}
    except jinja2.TemplateSyntaxError as error:
        answer = {"kind": "wrong", "text": str(error.message)[:200]}
    except Exception:
        answer = {"kind": "wrong", "text": "it does not fit the messages"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
