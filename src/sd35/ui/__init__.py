"""A page for people, in front of a service that it knows by HTTP alone."""

PATH = "/ui"  # where it is mounted
