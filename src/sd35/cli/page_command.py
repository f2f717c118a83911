"""The command `sd35 ui`."""

from typing import Annotated
from urllib.parse import urlsplit

import typer

from sd35.cli import options
from sd35.errors import InvalidSetting
from sd35.settings.directories import check_writable
from sd35.settings.proxies import check_proxies, is_address

app = typer.Typer(rich_markup_mode="rich")


@app.command(epilog=options.EPILOG)
def ui(
    *,
    server: Annotated[str, typer.Option(help="Address of the service, as https://images.example.com.")],
    host: options.Host = None,
    port: options.Port = None,
    allowed_hosts: options.AllowedHosts = None,
    public_url: options.PublicUrl = None,
    cache_dir: options.CacheDir = None,
    config: options.Config = None,
) -> None:
    """Serve the page for people alone, for a service that runs somewhere else.

    `sd35 serve` has the same page; this is for another machine, or a service that was started without it.

    [bold]Examples[/bold]

      sd35 ui --server http://gpu.example:8000 --port 8001
    """
    settings = options.settings_of(locals())
    address = urlsplit(server) if is_address(server, ("http", "https")) else None
    if address is None or address.query or address.fragment or "@" in address.netloc:  # it is shown to whoever visits
        raise InvalidSetting(f"--server: got {server!r}; allowed: an address as http://127.0.0.1:8000")
    check_proxies()
    check_writable("cache_dir", settings.cache_dir)
    from sd35.cli.ui import ui as run

    run(server, settings)
