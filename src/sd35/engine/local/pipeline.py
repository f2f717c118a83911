"""A checkpoint in a backend, with everything else that an engine needs to generate images."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from sd35.backends.base import Backend
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.engine.local.preview import PreviewMap
from sd35.engine.model_info import COMPILED, TILED, ModelInfo
from sd35.sampling.sigmas import SigmaSchedule, sigma_schedule_of
from sd35.tensors import LATENT_CHANNELS


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A checkpoint, the backend that holds its weights, and the map that computes its previews."""

    checkpoint: Checkpoint
    backend: Backend
    preview: PreviewMap = field(default_factory=lambda: PreviewMap(LATENT_CHANNELS))

    @cached_property
    def schedule(self) -> SigmaSchedule:
        """The checkpoint's sigma schedule. Raises CheckpointError if its scheduler is not supported."""
        return sigma_schedule_of(self.checkpoint)

    @cached_property
    def info(self) -> ModelInfo:
        """The description of the model for callers of the engine."""
        backend, checkpoint = self.backend, self.checkpoint
        return ModelInfo(
            name=checkpoint.name,
            revision=checkpoint.revision,
            profile=_profile_of(backend),
            backend=backend.name,
            precision=backend.precision,
            card=checkpoint.card,
            versions=backend.versions,
            can_skip_layers=backend.can_skip_layers,
            created_s=checkpoint.directory.stat().st_mtime,
        )

    def sigmas(self, steps: int) -> tuple[float, ...]:
        """Return the sigma (the share of noise in the latent) before each step, followed by 0."""
        return _sigmas(self.schedule, steps)


def _profile_of(backend: Backend) -> str:
    """Return everything about a backend's computation that changes pixels, in one string.

    Examples are "onnx/float32", "onnx/fp8/5d7e9a10" and "diffusers/bfloat16/compiled/tiled".
    """
    parts = [backend.name, backend.precision]
    parts += [backend.build] if backend.build else []
    parts += [COMPILED] if backend.is_compiled else []
    parts += [TILED] if backend.is_tiled else []
    return "/".join(parts)


@lru_cache
def _sigmas(schedule: SigmaSchedule, steps: int) -> tuple[float, ...]:
    """Return the sigmas as floats. Cached, because most generations have the same number of steps."""
    return tuple(map(float, schedule.sigmas(steps)))
