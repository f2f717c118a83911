"""The messages that `sd35 serve` prints to stdout while it loads, when it is ready, and when it stops."""

import ipaddress
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from sd35.engine.model_info import ModelInfo
from sd35.planning.auto import AUTO, why_standing_in
from sd35.planning.plan import AvailableMemory, Placement
from sd35.planning.report import size_text
from sd35.settings import Settings
from sd35.storage.blobs.open import DIRECTORY, MEMORY
from sd35.telemetry.logs import is_console, printable

STOPPING = "Stopping: running images are finished first. Press Ctrl-C again to end at once."
_HOW_TO_STOP = "Stop with Ctrl-C: running images are finished first. A second Ctrl-C ends at once."
_EXAMPLE_BODY = '{"prompt": "a cat on a blue background"}'
_LABEL_WIDTH = 16  # characters, including the space after the label


class PlannedMemory(NamedTuple):
    """The memory plan of a server.

    Attributes:
        available: The memory of the device and of the host.
        placements: Where the networks are in memory: a placement for the backend, and one for the fallback, if any.
    """

    available: AvailableMemory
    placements: Sequence[Placement]


class ReadyServer(NamedTuple):
    """A server that is ready.

    Attributes:
        address: The URL under which this machine reaches it.
        host: The IP address on which it listens.
        started_s: The seconds from the start of the process until the server was ready.
        models: The served models, the default first.
        memory: The memory plan.
        database: The name of the database, without a password.
        has_ui: Whether it serves the user interface.
        needs_key: Whether clients need an API key.
        is_building: Whether graphs or engines are still being built, and the fallback generates the images meanwhile.
    """

    address: str
    host: str
    started_s: float
    models: Sequence[ModelInfo]
    memory: PlannedMemory
    database: str
    has_ui: bool
    needs_key: bool
    is_building: bool


class Terminal:
    """Prints messages to stdout for the person who started the server.

    If stdout is no terminal and the logs are for programs (see `is_console`), it prints warnings and the line
    `Ready: ADDRESS ...` only. Programs can wait for that line. For the arguments, see `ReadyServer`.
    """

    def __init__(self, settings: Settings, address: str, host: str, database: str, *, needs_key: bool) -> None:
        self._settings, self._address, self._host = settings, address, host
        self._database, self._needs_key = database, needs_key
        self._is_for_people = is_console(settings.log_format) or sys.stdout.isatty()
        self._memory: PlannedMemory | None = None

    def print_loading(self) -> None:
        """Print which models are being loaded. Also warn if other machines can reach the server without an API key."""
        if not self._needs_key and not ipaddress.ip_address(self._host).is_loopback:
            command = _keys_add_command(self._settings)
            structlog.get_logger().warning("open to everyone: there are no API keys", host=self._host, remedy=command)
            if not is_console(self._settings.log_format):  # in console format, the log line above is readable enough
                _print(
                    f"WARNING: there are no API keys, so anyone who can reach {self._host} may use this service."
                    f" Create a key with: {printable(command)}"
                )
        if self._is_for_people:
            _print(loading_text(self._settings))

    def on_plan(self, available: AvailableMemory, placements: Sequence[Placement]) -> None:
        """Keep the memory plan, for `print_ready`."""
        self._memory = PlannedMemory(available, placements)

    def print_ready(self, models: Sequence[ModelInfo], started_s: float, *, has_ui: bool, is_building: bool) -> None:
        """Print that the server is ready. For the arguments, see `ReadyServer`.

        Also warn if the checkpoint `auto` found no SD3.5 model, so that a small model is served instead.
        """
        assert self._memory
        server = ReadyServer(
            address=self._address,
            host=self._host,
            started_s=started_s,
            models=models,
            memory=self._memory,
            database=self._database,
            has_ui=has_ui,
            needs_key=self._needs_key,
            is_building=is_building,
        )
        _print(ready_text(self._settings, server) if self._is_for_people else ready_line(self._address))
        for model in models:
            if reason := why_standing_in(self._settings, model.name):
                _print(f"WARNING: serving {model.name} instead of SD3.5: {reason}.")

    def print_stopping(self) -> None:
        """Print that the server stops after the running images are finished."""
        if self._is_for_people:
            _print(STOPPING)


def loading_text(settings: Settings) -> str:
    """Return a line with the names of the checkpoints that are being loaded, and the backend."""
    names = ["the best SD3.5 model that fits here" if name == AUTO else name for name in settings.checkpoints]
    return printable(f"Loading {', '.join(names)} (backend {settings.backend}). Large models take minutes.")


def ready_line(address: str) -> str:
    """Return the line for programs that wait until the server is ready."""
    return f"Ready: {address} (API reference: {address}/docs)"


def ready_text(settings: Settings, server: ReadyServer) -> str:
    """Return what a person wants to know when the server is ready, in several lines.

    These are the address, the models, memory and storage, a command that generates an image, and how to stop.
    """
    title = "Model" if len(server.models) == 1 else "Models"
    rows = [
        *([("User interface", f"{server.address}/")] if server.has_ui else []),
        ("API reference", f"{server.address}/docs"),
        *([("Public URL", settings.public_url)] if settings.public_url else []),
        *([] if ipaddress.ip_address(server.host).is_loopback else [("Listens on", server.host)]),
        *((title if model is server.models[0] else "", _model_text(model, server.memory)) for model in server.models),
        *([("Fallback", _fallback_text(settings))] if server.is_building else []),
        ("Memory", _memory_text(server.memory)),
        ("Images", _images_text(settings)),
        ("Database", _place_text(server.database)),
        ("API keys", _keys_text(settings, needs_key=server.needs_key)),
    ]
    table = "".join(f"  {label:<{_LABEL_WIDTH}}{text}\n" for label, text in rows)
    text = (
        f"Ready: {server.address} (started in {server.started_s:.1f} s)\n\n{table}\n"
        f"Generate an image:\n\n  {_curl_command(server)}\n\n{_HOW_TO_STOP}"
    )
    return printable(text, keep="\n")


def _model_text(model: ModelInfo, memory: PlannedMemory) -> str:
    device = "the CPU" if memory.available.device == "cpu" else "CUDA"
    return f"{model.name}, revision {model.revision[:12]}: {model.backend} on {device}, {model.precision}"


def _fallback_text(settings: Settings) -> str:
    backend = settings.backend if settings.precision == "auto" else f"{settings.backend}/{settings.precision}"
    return f"{settings.fallback} generates images until the files for {backend} are built"


def _memory_text(memory: PlannedMemory) -> str:
    """Return the planned and the available memory: of the host for models on a CPU, else of the GPU and the host."""
    available, placements = memory
    peak_bytes = sum(placement.peak_bytes for placement in placements)
    text = f"{size_text(peak_bytes)} planned at the peak, {size_text(available.device_bytes)} available"
    if available.device == "cpu" or available.host_bytes is None:
        return text
    host_bytes = sum(placement.host_bytes for placement in placements)
    return f"GPU: {text}; host: {size_text(host_bytes)} planned, {size_text(available.host_bytes)} available"


def _images_text(settings: Settings) -> str:
    """Return where images are stored, and how long they are kept."""
    place = settings.image_store or str(settings.data_dir.absolute() / DIRECTORY)
    if place == MEMORY:
        return _place_text(place)
    limits = [
        *([f"{settings.retention_days:g} days after the last request"] if settings.retention_days else []),
        *([f"up to {settings.retention_gb:g} GB in total"] if settings.retention_gb else []),
    ]
    return f"{place}, kept {' and '.join(limits) if limits else 'without limit'}"


def _place_text(place: str) -> str:
    return "in memory, lost when the server stops" if place == MEMORY else place


def _keys_text(settings: Settings, *, needs_key: bool) -> str:
    """Return whether clients need an API key. If not, also return how to create one, if the database can keep it."""
    if needs_key:
        return "required, as the header 'Authorization: Bearer sd35_...'"
    if settings.database == MEMORY:
        return "not required"
    return f"not required; create one with: {_keys_add_command(settings)}"


def _keys_add_command(settings: Settings) -> str:
    """Return the command that adds a key to the database of this server. The database's URL is replaced by `...`."""
    data_dir = ["--data-dir", str(settings.data_dir)] if "data_dir" in settings.model_fields_set else []
    database = " --database ..." if settings.database else ""  # the URL may contain a password
    return shlex.join(["sd35", "keys", "add", "NAME", *data_dir]) + database


def _curl_command(server: ReadyServer) -> str:
    """Return a curl command that generates an image with this server."""
    key = " -H 'authorization: Bearer sd35_...'" if server.needs_key else ""
    return (
        f"curl -f -X POST {server.address}/v1/txt2img{key} -H 'content-type: application/json'"
        f" -d {shlex.quote(_EXAMPLE_BODY)} -o out.png"
    )


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201  for the person at the terminal
