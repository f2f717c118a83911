"""The sigma schedule, numerically equal to Diffusers' FlowMatchEulerDiscreteScheduler.

A sigma is the share of noise in a latent, from 1 down to 0. `sd35.sampling.solvers` makes the steps between sigmas.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import CheckpointError
from sd35.tensors import Array

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Options of Diffusers' scheduler that no SD3.5 checkpoint uses. A checkpoint with one of them is refused.
_UNSUPPORTED = (
    "use_dynamic_shifting",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
)


@dataclass(frozen=True)
class SigmaSchedule:
    """A checkpoint's sigma schedule. A larger `shift` spends more steps at high noise (SD3 paper, section 5.3.2)."""

    shift: float
    num_train_timesteps: int = 1000

    def sigmas(self, steps: int) -> Float32[Array, " steps+1"]:
        """Return the sigma before each step, then 0. Step `i` goes from `sigmas[i]` to `sigmas[i + 1]`.

        As in Diffusers, the shift applies twice. First, it moves the smallest sigma of the training. The steps divide
        the range from 1 to this sigma evenly. Then it moves all sigmas of the steps.
        """
        assert steps > 0, steps
        total = self.num_train_timesteps
        lowest = float(self._shifted(np.float32(1) / np.float32(total)))
        unshifted = np.linspace(total, lowest * total, steps) / total
        return np.append(self._shifted(unshifted), 0).astype(np.float32)

    def _shifted(self, sigma: Any) -> Any:  # noqa: ANN401  a float32 scalar or a float64 array; the type is kept
        """Return one sigma or an array of sigmas, moved towards the noise by the shift."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


def sigma_schedule_of(checkpoint: Checkpoint) -> SigmaSchedule:
    """Return the sigma schedule that a checkpoint's scheduler configuration describes.

    Raises CheckpointError if the scheduler is not the one of SD3.5, or sets an unsupported option.
    """
    config = checkpoint.config("scheduler", "scheduler_config.json")
    kind = config.get("_class_name")
    unsupported = [option for option in _UNSUPPORTED if config.get(option)]
    if kind != _SCHEDULER or unsupported:
        found = f"{kind} with {', '.join(unsupported)}" if unsupported else str(kind)
        raise CheckpointError(
            f"{checkpoint.name}: the scheduler in scheduler_config.json is {found}; allowed: {_SCHEDULER} without the"
            f" options {', '.join(_UNSUPPORTED)}"
        )
    total = config.get("num_train_timesteps", 1000)
    if total != 1000:  # the backends' timestep is sigma * 1000
        raise CheckpointError(
            f"{checkpoint.name}: num_train_timesteps in scheduler_config.json is {total}; allowed: 1000"
        )
    return SigmaSchedule(shift=float(config.get("shift", 1.0)))
