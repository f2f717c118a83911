"""Euler's method, numerically equal to Diffusers' FlowMatchEulerDiscreteScheduler."""

from jaxtyping import Float

from sd35.sampling.arithmetic import add_scaled
from sd35.sampling.solvers.base import Solver, sigma_difference
from sd35.tensors import Tensor


class Euler(Solver):
    """`latent + (sigma_next - sigma) * velocity`, one evaluation a step."""

    @staticmethod
    def evaluations(steps: int) -> int:
        """Return `steps`."""
        return steps

    def _advanced(self, latent: Float[Tensor, "16 h w"], velocity: Float[Tensor, "16 h w"]) -> Float[Tensor, "16 h w"]:
        sigma, sigma_next = self.sigmas[self.step : self.step + 2]
        self.step += 1
        return add_scaled(latent, velocity, sigma_difference(sigma, sigma_next))
