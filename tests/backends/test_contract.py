"""The contract suite for all backends."""

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from mmap import mmap

import numpy as np
import pytest

from sd35.backends.base import Backend, DenoiseRow, Skip
from sd35.backends.registry import BACKENDS
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.sampling.noise import initial_noise
from sd35.tensors import Array, Tensor
from tests.support.solving import euler_step

PROMPTS = ["a cat on a blue background", "", "ein 猫 🐱 nobody has words for, " * 40]
LATENT = (16, 8, 12)
TOLERANCE = 2e-5  # for float32 values of a few units, computed in another order


def as_array(tensor: Tensor) -> Array:
    """Convert a tensor of any backend to float32."""
    return np.asarray(tensor, np.float32)


@pytest.fixture(scope="module")
def rows(backend: Backend) -> list[DenoiseRow]:
    """Rows that have only their shape in common. The second is not guided; the last ones skip layers."""
    cat, nothing, long = backend.encode_text(PROMPTS)
    skips = (Skip((2, 3), 2.8), Skip((1,), 1.5), Skip((2, 3), 0.5)) if backend.can_skip_layers else ()
    return [
        DenoiseRow(initial_noise(1, LATENT), cat, nothing, 1.0, 4.5),
        DenoiseRow(initial_noise(2, LATENT), long, None, 0.602151, 0.0),
        DenoiseRow(initial_noise(3, LATENT), long, cat, 0.008929, 7.0),
        *(DenoiseRow(initial_noise(4, LATENT), cat, long, 0.987381, 4.5, skip) for skip in skips),
    ]


def test_prompts_are_encoded_in_order_and_independently(backend: Backend) -> None:
    """An embedding does not depend on the other prompts in the call."""
    together = backend.encode_text(PROMPTS)
    for prompt, embedding in zip(PROMPTS, together, strict=True):
        (alone,) = backend.encode_text([prompt])
        np.testing.assert_allclose(as_array(embedding.tokens), as_array(alone.tokens), atol=TOLERANCE)
        np.testing.assert_allclose(as_array(embedding.pooled), as_array(alone.pooled), atol=TOLERANCE)
    assert abs(as_array(together[0].tokens) - as_array(together[2].tokens)).max() > 100 * TOLERANCE


def test_embeddings_have_the_shapes_of_the_checkpoint(backend: Backend, checkpoint: Checkpoint) -> None:
    """`tokens` has the tokens of CLIP and T5, `pooled` both projections, and `nbytes` the size of both tensors."""
    (embedding,) = backend.encode_text(["a cat"])
    clip = checkpoint.config("text_encoder")
    transformer = checkpoint.config("transformer")
    text = clip["max_position_embeddings"] + checkpoint.card.max_sequence_length
    assert as_array(embedding.tokens).shape == (text, transformer["joint_attention_dim"])
    assert as_array(embedding.pooled).shape == (transformer["pooled_projection_dim"],)
    assert embedding.nbytes == embedding.tokens.nbytes + embedding.pooled.nbytes


def test_rows_in_a_batch_equal_rows_alone(backend: Backend, rows: list[DenoiseRow]) -> None:
    """The batch has guided and unguided rows with different sigmas."""
    together = backend.predict_velocity(rows)
    for row, latent in zip(rows, together, strict=True):
        (alone,) = backend.predict_velocity([row])
        np.testing.assert_allclose(as_array(latent), as_array(alone), rtol=TOLERANCE, atol=TOLERANCE)


def test_layers_are_skipped_or_the_row_is_refused(backend: Backend, rows: list[DenoiseRow]) -> None:
    """If the backend can skip layers, the velocity changes; otherwise the row is an error."""
    skipping = replace(rows[0], skip=Skip((2, 3), 2.8))
    if backend.can_skip_layers:
        plain, skipped = (as_array(backend.predict_velocity([row])[0]) for row in (rows[0], skipping))
        assert abs(plain - skipped).max() > 100 * TOLERANCE
    else:
        with pytest.raises(AssertionError, match="can_skip_layers"):
            backend.predict_velocity([skipping])


def test_guidance_of_zero_and_one_are_the_same(backend: Backend, rows: list[DenoiseRow]) -> None:
    """As in Diffusers, the value does not matter up to 1."""
    row = rows[1]
    one = DenoiseRow(row.latent, row.positive, None, row.sigma, 1.0)
    zero, same = (as_array(backend.predict_velocity([each])[0]) for each in (row, one))
    assert np.array_equal(zero, same)


def test_an_evaluation_does_not_change_its_row_and_can_be_continued(backend: Backend, rows: list[DenoiseRow]) -> None:
    """A repeated evaluation gives the same result, and the latent after a step can be evaluated."""
    row, noise = rows[0], np.array(rows[0].latent)
    first, again = (euler_step(backend, [row], 0.857692)[0] for _ in range(2))
    assert np.array_equal(row.latent, noise)
    assert np.array_equal(as_array(first), as_array(again))
    assert as_array(first).shape == LATENT
    (second,) = euler_step(backend, [replace(row, latent=first, sigma=0.857692)], 0.602151)
    assert abs(as_array(second) - as_array(first)).max() > TOLERANCE


def test_latents_are_decoded_in_order_and_independently(backend: Backend) -> None:
    """An RGB image has eight times the latent's sides, and does not depend on the other latents in the call."""
    latents = [initial_noise(seed, LATENT) for seed in (1, 2, 3)]
    together = backend.decode_latents(latents)
    for latent, image in zip(latents, together, strict=True):
        assert image.shape == (64, 96, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        (alone,) = backend.decode_latents([latent])
        assert abs(image.astype(int) - alone).max() <= 1
    assert not np.array_equal(together[0], together[1])


def test_an_overflow_while_decoding_is_an_error(backend: Backend) -> None:
    """Otherwise the pixels could not be distinguished from a black image."""
    too_large = np.full(LATENT, 1e38, np.float32)
    with pytest.raises(FloatingPointError):
        backend.decode_latents([too_large])
    assert backend.decode_latents([initial_noise(1, LATENT)])[0].any()


def test_a_backend_has_a_name_and_versions(backend: Backend) -> None:
    """The name is registered, and each version is that of an installed library."""
    assert backend.name in BACKENDS
    assert backend.precision == "float32"
    assert backend.versions
    assert backend.versions == {name: version(name) for name in backend.versions}


def test_decoding_during_steps_gives_the_same_results(backend: Backend, rows: list[DenoiseRow]) -> None:
    """One thread may decode while another denoises."""
    expected = backend.decode_latents([initial_noise(1, LATENT)])[0]
    step = as_array(backend.predict_velocity(rows)[0])
    with ThreadPoolExecutor() as pool:
        decodings = [pool.submit(backend.decode_latents, [initial_noise(1, LATENT)]) for _ in range(3)]
        steps = [as_array(backend.predict_velocity(rows)[0]) for _ in range(3)]
    assert all(np.array_equal(decoding.result()[0], expected) for decoding in decodings)
    assert all(np.array_equal(each, step) for each in steps)


def test_memory_is_measured(backend: Backend) -> None:
    """Free memory is positive, and the peak includes memory that was held only briefly."""
    assert backend.memory.free_bytes() > 0
    gc.collect()  # a collection during the measurement would hide a part of the peak
    backend.memory.watch()
    with mmap(-1, 64 << 20) as fresh:  # directly from the system: an allocator may reuse memory of earlier tests
        for _ in range(64):
            fresh.write(bytes(1 << 20))  # the system provides a page on the first write
    assert backend.memory.peak_bytes() >= 60 << 20
    backend.memory.watch()
    assert backend.memory.peak_bytes() < 60 << 20
