"""The user interface: a web page that uses a service only through its HTTP API."""

PATH = "/ui"  # of the user interface, in the service and in `sd35 ui`
