"""The user interface: a web page that uses a service only through its HTTP API."""

PATH = "/ui"  # the user interface is mounted here
