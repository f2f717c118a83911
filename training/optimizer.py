"""The Muon optimizer for matrices and convolution kernels, and a learning-rate schedule."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Amsel et al., "The Polar Express", 2025: the best quintic polynomial for each step. Newton-Schulz uses one polynomial
# for all steps. Three of these steps raise small singular values as much as four of Newton-Schulz.
_POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrix of each matrix of a batch, float32 `[..., m, n]`.

    The steps use the Gram matrix of the shorter side, so that there are two large products in total, not in each step.
    """
    transposed = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if transposed else matrix
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT
    eye = torch.eye(gram.shape[-1])
    total = eye.expand_as(gram)
    for step, (a, b, c) in enumerate(_POLYNOMIALS):
        polynomial = a * eye + b * gram + c * (gram @ gram)
        total = polynomial @ total if step else polynomial
        if step + 1 < len(_POLYNOMIALS):
            gram = polynomial @ gram @ polynomial  # the factors commute: all are polynomials of one symmetric matrix
    x = total @ x
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """The Muon optimizer: orthogonalised momentum. A kernel `[out, in, h, w]` counts as a matrix `[out, in*h*w]`."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Update each parameter that has a gradient. Parameters of equal shapes are one batch."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for shape, parameters in shapes.items():
                update = orthogonalise(
                    torch.stack([self._nesterov(p, group["momentum"]).flatten(1) for p in parameters])
                )
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, delta in zip(parameters, update, strict=True):
                    parameter.add_(delta.view_as(parameter), alpha=-scale)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        update: Tensor = parameter.grad.lerp(state["momentum"], momentum)
        return update


def schedule(step: int, steps: int, warmup: int, decay_from: float) -> float:
    """Return the learning-rate factor: linear warm-up, then 1, then linear to 0 from the share `decay_from` on."""
    rise = min(1.0, (step + 1) / warmup)
    fall = (steps - step) / (steps * (1 - decay_from))
    return min(rise, max(0.0, fall), 1.0)
