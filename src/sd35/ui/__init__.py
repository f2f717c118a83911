"""The user interface: web pages in front of a service, which they use by its HTTP API only."""

PATH = "/ui"  # where it is mounted
