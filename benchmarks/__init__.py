"""Measurements, each a ratio of two ways to do the same in one run: `python -m benchmarks`."""
