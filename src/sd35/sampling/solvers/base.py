"""The interface of solvers, which integrate a latent from noise to image, one evaluation of the model at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float

from sd35.sampling.arithmetic import like, to_float32
from sd35.tensors import Tensor


class Solver(ABC):
    """Integrates one latent from the first of `sigmas` to the last one, which is 0.

    Until `is_done`, evaluate the model's velocity at `latent` and `sigma`, and pass it to `advance`. A subclass keeps
    the state of its method. A method may evaluate several times a step, use earlier velocities, or draw noise from
    `seed`. `step` counts complete steps, out of `len(sigmas) - 1`.
    """

    def __init__(self, sigmas: Sequence[float], latent: Float[Tensor, "16 h w"], seed: int) -> None:
        assert len(sigmas) > 1, sigmas
        self.sigmas, self.latent, self.seed = sigmas, latent, seed
        self.step = 0
        self._evaluated: tuple[Tensor, float, Tensor] | None = None  # latent, sigma and velocity of the last evaluation

    @staticmethod
    @abstractmethod
    def evaluations(steps: int) -> int:
        """Return the number of evaluations of the model that `steps` steps need."""

    @property
    def sigma(self) -> float:
        """The sigma at which to evaluate `latent`."""
        return self.sigmas[self.step]

    @property
    def is_done(self) -> bool:
        """Whether `latent` is the result."""
        return self.step == len(self.sigmas) - 1

    def advance(self, velocity: Float[Tensor, "16 h w"]) -> None:
        """Replace `latent` by the next one, given the model's velocity at `latent` and `sigma`."""
        latent = like(self.latent, velocity)
        self._evaluated = latent, self.sigma, velocity
        self.latent = self._advanced(latent, velocity)

    def denoised(self) -> Float[Tensor, "16 h w"]:
        """Return the image without noise that the last evaluation predicts, as a float32 latent.

        It is `latent - sigma * velocity`.
        """
        assert self._evaluated, "no evaluation yet"
        latent, sigma, velocity = self._evaluated
        return to_float32(latent) - sigma * to_float32(velocity)

    @abstractmethod
    def _advanced(self, latent: Float[Tensor, "16 h w"], velocity: Float[Tensor, "16 h w"]) -> Float[Tensor, "16 h w"]:
        """Return the next latent to evaluate, or the result after the last step. Update `self.step`."""
