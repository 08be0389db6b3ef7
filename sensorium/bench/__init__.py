"""Measurements behind `sensorium bench`."""
