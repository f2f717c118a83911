"""The prompts for calibrating FP8, and other prompts for evaluating it in the quality gate."""

from collections.abc import Sequence

from sd35.checkpoints.checkpoint import Checkpoint

_CALIBRATION = (
    "a portrait of an elderly fisherman with a grey beard, soft window light, 85 mm photograph",
    'a neon sign that says "OPEN LATE" above a ramen bar on a rainy street at night',
    "an isometric illustration of a small library with tiny people reading",
    "a red fox jumping over a frozen stream, snow spraying, telephoto, motion blur",
    "a still life of pears and a blue ceramic jug, oil on canvas, visible brush strokes",
    "an aerial view of terraced rice fields at sunrise with thin fog",
    "a watercolor sketch of a lighthouse on a cliff, loose lines, white background",
    "a close-up of a mechanical watch movement, macro photograph, shallow depth of field",
)  # fmt: skip
_EVALUATION = (
    "a wooden desk with an open notebook, a cup of coffee and round glasses, morning light",
    "an astronaut riding a horse through a field of sunflowers, wide angle",
    'a poster with the words "Summer Fair" in bold letters over a striped tent',
    "a black cat on a stone wall under a full moon, long exposure",
)  # fmt: skip
_SMALL_MODEL_CALIBRATION = (
    "a cat on a blue background",
    "a rocket above a dog on a red background",
    "a tree to the left of a car on a green background",
    "a fish on a yellow background",
    "an apple below a key on a white background",
    "a star on a black background",
    "a house to the right of a sun on a purple background",
    "a dog on a gray background",
)
_SMALL_MODEL_EVALUATION = (
    "a penguin on a pink background",
    "a castle above a moon on an orange background",
    "a guitar to the right of a crab on a white background",
    "a lemon on a purple background",
    "a robot to the left of a rose on a blue background",
    "a train below a cloud on a green background",
    "an owl on a red background",
    "a book above a ball on a black background",
)


def calibration_prompts(checkpoint: Checkpoint) -> Sequence[str]:
    """Return the calibration prompts. Small test models get prompts from their own training vocabulary.

    A small test model has `enlarges` in its card.
    """
    return _SMALL_MODEL_CALIBRATION if checkpoint.card.enlarges else _CALIBRATION


def evaluation_prompts(checkpoint: Checkpoint) -> Sequence[str]:
    """Return the evaluation prompts. They are like the calibration prompts, but none is in both sets."""
    return _SMALL_MODEL_EVALUATION if checkpoint.card.enlarges else _EVALUATION
