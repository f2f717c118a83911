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
    """Start the server: the HTTP API and the user interface.

    Open the printed address in a browser for the user interface (needs the extra `ui`), and /docs there for the API
    reference. Ctrl-C or SIGTERM stops the server when the running images are finished, or after --shutdown-grace-s. A
    second signal ends it at once.

    [bold]Examples[/bold]

      sd35 serve --checkpoint sd3.5-medium --backend diffusers
      sd35 serve --host 0.0.0.0 --port 80
      sd35 serve --precision fp8 --fallback onnx/float32
      sd35 serve --backend diffusers --checkpoint sd3.5-medium --checkpoint ~/models/mine
    """
    run_server(settings)
