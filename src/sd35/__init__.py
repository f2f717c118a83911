"""Serves Stable Diffusion 3.5: one command, an HTTP API, and a small real model inside."""
