"""Euler's method, numerically equal to Diffusers' FlowMatchEulerDiscreteScheduler."""

from jaxtyping import Float

from sd35.sampling.arithmetic import add_scaled
from sd35.sampling.solvers.base import Solver
from sd35.tensors import Tensor


class Euler(Solver):
    """Each step is `latent + (sigma_next - sigma) * velocity`, with one evaluation."""

    @staticmethod
    def evaluations(steps: int) -> int:
        """Return `steps`, because each step needs one evaluation."""
        return steps

    def _advanced(self, latent: Float[Tensor, "16 h w"], velocity: Float[Tensor, "16 h w"]) -> Float[Tensor, "16 h w"]:
        sigma = self.sigma
        self.step += 1
        # The sigmas are float32 values. Rounded to float32, their difference equals Diffusers', computed in float32.
        return add_scaled(latent, velocity, self.sigma - sigma)
