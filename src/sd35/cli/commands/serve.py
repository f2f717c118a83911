"""The command `sd35 serve`."""

import typer

from sd35.api.server import serve as run_server
from sd35.cli.options import with_settings
from sd35.settings import Settings
from sd35.settings.description import secret_settings

app = typer.Typer()


@app.command()
@with_settings(*(name for name in Settings.model_fields if name not in secret_settings()))
def serve(*, settings: Settings) -> None:
    """Serve images over HTTP until Ctrl-C or SIGTERM, and finish running images first.

    Open the printed address in a browser for the user interface, if the extra `ui` is installed, and its /docs for the
    API.

    [bold]Examples[/bold]

      sd35 serve
      sd35 serve --host 0.0.0.0 --port 80
      sd35 serve --precision fp8 --fallback onnx/float32
      sd35 serve --checkpoint sd35-mini --checkpoint sd3.5-medium --checkpoint ~/models/mine
    """
    run_server(settings)
