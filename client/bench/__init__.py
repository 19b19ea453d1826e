"""Measuring fs3 beside its limits, in the same run: ``fs3 bench``."""
