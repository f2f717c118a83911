"""Solvers of the probability-flow ODE, one class a file. `Solver` in `base` is their common interface."""
