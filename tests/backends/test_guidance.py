"""The transformer rows of a batch, and how their velocities are combined."""

from typing import Any

import numpy as np

from sd35.backends.base import DenoiseRow, Skip, TextEmbedding
from sd35.backends.guidance import guided_velocities, skipping_rows, timestep_of, transformer_rows

CAT, DOG, NOTHING = (TextEmbedding(np.full(1, value), np.full(1, value), 16) for value in (1, 2, 0))
GUIDED = DenoiseRow(np.zeros(1), CAT, NOTHING, 1.0, 4.5)
PLAIN = DenoiseRow(np.zeros(1), DOG, None, 0.5, 1.0)


def test_a_guided_row_needs_two_transformer_rows() -> None:
    """Negatives come first, then all positives, as in Diffusers. A row without guidance has no negative."""
    assert transformer_rows([PLAIN]) == [(PLAIN, DOG)]
    assert transformer_rows([GUIDED]) == [(GUIDED, NOTHING), (GUIDED, CAT)]
    assert transformer_rows([PLAIN, GUIDED]) == [(GUIDED, NOTHING), (PLAIN, DOG), (GUIDED, CAT)]


def test_velocities_are_guided_row_by_row() -> None:
    """The result is `u + g * (c - u)` with a negative, and `c` without."""
    velocities = [
        np.array([value], np.float32) for value in (1.0, 7.0, 3.0)
    ]  # GUIDED's negative, PLAIN, GUIDED's positive
    plain, guided = guided_velocities([PLAIN, GUIDED], velocities)
    assert plain == 7.0
    assert guided == 1.0 + 4.5 * (3.0 - 1.0)


def test_rows_that_skip_the_same_layers_share_a_call() -> None:
    """The calls have positives only. Rows without skipped layers are not in them."""
    first, other, last = (
        DenoiseRow(np.zeros(1), positive, NOTHING, 1.0, 4.5, Skip(layers, 2.0))
        for positive, layers in ((CAT, (7, 8)), (DOG, (3,)), (DOG, (7, 8)))
    )
    assert skipping_rows([PLAIN, GUIDED]) == {}
    assert skipping_rows([first, GUIDED, other, last]) == {(7, 8): [(first, CAT), (last, DOG)], (3,): [(other, DOG)]}


def test_skip_layer_guidance_is_added_to_guidance() -> None:
    """`scale * (c - s)` is added for each row, with the row's `s` and scale."""
    rows = [
        DenoiseRow(np.zeros(1), CAT, NOTHING, 1.0, 4.5, skip)
        for skip in (Skip((7,), 2.0), None, Skip((3,), 0.5), Skip((7,), 4.0))
    ]
    velocities = [np.array([value], np.float32) for value in (1, 1, 1, 1, 3, 4, 5, 6)]  # four negatives and positives
    skipping: dict[tuple[int, ...], list[Any]] = {(7,): [np.float32(2), np.float32(5)], (3,): [np.float32(1)]}
    assert [float(each[0]) for each in guided_velocities(rows, velocities, skipping)] == [
        1 + 4.5 * (3 - 1) + 2.0 * (3 - 2),
        1 + 4.5 * (4 - 1),
        1 + 4.5 * (5 - 1) + 0.5 * (5 - 1),
        1 + 4.5 * (6 - 1) + 4.0 * (6 - 5),
    ]


def test_the_timestep_is_computed_in_float32() -> None:
    """Diffusers' scheduler does the same. Another rounding would change the image."""
    row = DenoiseRow(np.zeros(1), CAT, None, float(np.float32(0.8576923)), 1.0)
    assert timestep_of(row) == np.float32(0.8576923) * np.float32(1000)
    assert timestep_of(row).dtype == np.float32
