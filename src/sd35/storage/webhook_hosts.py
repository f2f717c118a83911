"""The host that a webhook's URL names."""


def host_of(url: str) -> str:
    """Return a URL's host as webhooks are grouped by it: lower case, ASCII, without a final dot; "" if it has none.

    The sender's own parser decides, so that both mean the same host.
    """
    import httpx2

    try:
        return httpx2.URL(url).raw_host.decode().rstrip(".")
    except (httpx2.InvalidURL, ValueError):
        return ""
