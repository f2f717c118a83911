"""Benchmarks behind this project's claims about speed, start-up and size: `python -m benchmarks`."""
