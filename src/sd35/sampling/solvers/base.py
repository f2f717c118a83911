"""The interface of solvers: from noise to a latent, one evaluation of the model at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float

from sd35.sampling.arithmetic import like, to_float32
from sd35.tensors import Tensor


class Solver(ABC):
    """Integrates one latent from the first of `sigmas` to the last, which is 0.

    Until `is_done`, evaluate the model's velocity at `latent` and `sigma`, and give it to `advance`. A method with
    several evaluations a step, with history, or with noise (drawn from `seed`) keeps its state here. `step` counts
    the steps that are complete, out of `len(sigmas) - 1`.
    """

    def __init__(self, sigmas: Sequence[float], latent: Float[Tensor, "16 h w"], seed: int) -> None:
        assert len(sigmas) > 1, sigmas
        self.sigmas, self.latent, self.seed = sigmas, latent, seed
        self.step = 0
        self._evaluated: tuple[Tensor, float, Tensor] | None = None  # latent, sigma and velocity, of the newest

    @staticmethod
    @abstractmethod
    def evaluations(steps: int) -> int:
        """Return how often the model is evaluated in so many steps."""

    @property
    def sigma(self) -> float:
        """The sigma at which to evaluate `latent`."""
        return self.sigmas[self.step]

    @property
    def is_done(self) -> bool:
        """Whether `latent` is the result."""
        return self.step == len(self.sigmas) - 1

    def advance(self, velocity: Float[Tensor, "16 h w"]) -> None:
        """Take the velocity at `latent` and `sigma`."""
        latent = like(self.latent, velocity)
        self._evaluated = latent, self.sigma, velocity
        self.latent = self._advanced(latent, velocity)

    def denoised(self) -> Float[Tensor, "16 h w"]:
        """Return what the newest evaluation predicts for sigma 0: `latent - sigma * velocity`, in float32."""
        assert self._evaluated, "nothing was evaluated yet"
        latent, sigma, velocity = self._evaluated
        return to_float32(latent) - sigma * to_float32(velocity)

    @abstractmethod
    def _advanced(self, latent: Float[Tensor, "16 h w"], velocity: Float[Tensor, "16 h w"]) -> Float[Tensor, "16 h w"]:
        """Return the latent to evaluate next, or the result, and count complete steps in `self.step`."""
