"""Generates the reference pages of docs/ from the code: `make docs`."""
