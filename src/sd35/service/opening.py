"""Composes a studio from settings, and keeps it through opening, serving and closing."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from sd35.backends.options import Options
from sd35.backends.table import open_backend
from sd35.checkpoints.checkpoint import Checkpoint, open_checkpoint
from sd35.checkpoints.tokenizers import Tokenizers
from sd35.engine.embeddings import EmbeddingCache
from sd35.engine.loop import CLOSING_RETRY_S
from sd35.engine.scheduler import Limits
from sd35.errors import InvalidSetting, NotReady
from sd35.service.model import Model
from sd35.service.studio import Studio
from sd35.settings import Settings

_LOADING_RETRY_S = 1.0
_MB = 10**6
OF_FREE_MEMORY = 0.9  # the rest is for what is not counted: latents, pictures being encoded, other processes


def open_checkpoints(settings: Settings) -> list[Checkpoint]:
    """The checkpoints of the settings.

    Raises CheckpointError, and InvalidSetting where two share a name, or it is open whose weights the files hold.
    """
    if settings.weights and len(settings.checkpoints) > 1:
        raise InvalidSetting(f"weights: got files beside {len(settings.checkpoints)} checkpoints; allowed: beside one")
    checkpoints = [
        open_checkpoint(name, settings.variants, settings.weights, settings.companion, settings.transformer)
        for name in settings.checkpoints
    ]
    found = [checkpoint.name for checkpoint in checkpoints]
    if doubled := sorted({name for name in found if found.count(name) > 1}):
        raise InvalidSetting(f"checkpoints: two are named {', '.join(doubled)}; rename a directory")
    return checkpoints


def open_studio(settings: Settings, checkpoints: Sequence[Checkpoint]) -> Studio:
    """Load the checkpoints into the backend, and draw a first picture with each: what is returned is ready.

    Takes seconds to minutes. Raises CheckpointError, BackendUnavailable, InvalidSetting, PictureFailed.
    """
    options = Options(
        precision=settings.precision,
        device=settings.device,
        offload=settings.offload,
        threads=settings.threads,
    )
    models = [
        Model(checkpoint, open_backend(settings.backend, checkpoint, options), Tokenizers(checkpoint).is_cut_off)
        for checkpoint in checkpoints
    ]
    memory_bytes = settings.memory_mb * _MB or int(OF_FREE_MEMORY * models[0].backend.memory.free_bytes())
    limits = Limits(settings.max_batch_rows, settings.max_pictures, settings.max_wait_s, memory_bytes)
    embeddings = EmbeddingCache(settings.embedding_cache_mb * _MB)
    studio = Studio(models, settings.max_pixels, limits, embeddings, reproducible=settings.reproducible)
    try:
        studio.draw_first()
    except BaseException:
        studio.engine.close()
        raise
    return studio


class Opening:
    """A studio that opens in the background, so that a server answers while its model loads, and closes gracefully."""

    def __init__(
        self,
        open_studio: Callable[[], Studio],
        on_ready: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._open_studio, self._on_ready, self._on_failure = open_studio, on_ready, on_failure
        self._studio: Studio | None = None
        self._loading: asyncio.Task[None] | None = None
        self.state: Literal["loading", "ready", "closing"] = "loading"

    @property
    def studio(self) -> Studio:
        """The studio. Raises NotReady where it is not open yet, or not any more."""
        if self.state != "ready" or self._studio is None:
            raise NotReady(self.state, CLOSING_RETRY_S if self.state == "closing" else _LOADING_RETRY_S)
        return self._studio

    def start(self) -> None:
        """Begin to open; needs a running event loop."""
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def close(self) -> None:
        """Refuse new pictures and finish those that were accepted. Doing it twice does no harm."""
        self.state = "closing"
        if self._loading:
            await self._loading
        if self._studio:
            await asyncio.to_thread(self._studio.engine.drain)

    async def _load(self) -> None:
        try:
            self._studio = await asyncio.to_thread(self._open_studio)
        except Exception as error:  # noqa: BLE001  whoever opened it decides what to do
            self._on_failure(error)
            return
        if self.state == "loading":
            self.state = "ready"
            self._on_ready()
