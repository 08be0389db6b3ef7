"""numba is a dependency that may be missing, as where it does not know the Python yet: everything works without."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib.machinery

find = importlib.machinery.PathFinder.find_spec
hidden = ("numba", "llvmlite")
importlib.machinery.PathFinder.find_spec = lambda name, *at: None if name.split(".")[0] in hidden else find(name, *at)

import sensorium.cli.serve
from sensorium import LLM, SamplingParams
from sensorium.kernels import compiled

print(compiled.why_not(64, 16))
with LLM() as llm:
    print(llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))[0].outputs[0].token_ids)
"""


@pytest.mark.slow
def test_it_answers(packaged_model):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reason, tokens = done.stdout.splitlines()
    assert reason.startswith("numba is not installed")
    assert tokens.count(",") == 3
