"""The parameter classes under vLLM's module name and names."""

from __future__ import annotations

from sensorium.params import BeamSearchParams, SamplingParams
from sensorium.params import StructuredOutputs as StructuredOutputsParams

__all__ = ["BeamSearchParams", "SamplingParams", "StructuredOutputsParams"]
