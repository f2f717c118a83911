"""The sigma schedule compared with Diffusers' scheduler."""

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from sd35.checkpoints.card import Card
from sd35.checkpoints.checkpoint import Checkpoint
from sd35.errors import CheckpointError
from sd35.sampling.sigmas import SigmaSchedule, sigma_schedule_of


@given(steps=st.integers(1, 150), shift=st.sampled_from([1.0, 1.15, 3.0, 6.0]))
def test_sigmas_equal_diffusers_to_the_bit(steps: int, shift: float) -> None:
    """In float32, for any number of steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = SigmaSchedule(shift).sigmas(steps)
    assert sigmas.dtype == np.float32
    assert np.array_equal(sigmas, scheduler.sigmas.numpy())


def test_sigmas_of_sd35() -> None:
    """The known values of SD3.5 for shift 3 and four steps."""
    assert SigmaSchedule(3.0).sigmas(4).tolist() == pytest.approx([1, 0.857692, 0.602151, 0.008929, 0], abs=1e-6)


def checkpoint_with(directory: Path, **config: object) -> Checkpoint:
    """Create a checkpoint with only a scheduler configuration."""
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return Checkpoint("model", directory, Card())


def test_the_shift_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    """Diffusers wrote the configuration."""
    FlowMatchEulerDiscreteScheduler(shift=2.5).save_pretrained(tmp_path / "scheduler")
    assert sigma_schedule_of(Checkpoint("model", tmp_path, Card())) == SigmaSchedule(2.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dynamic_shifting", True),
        ("use_karras_sigmas", True),
        ("shift_terminal", 0.1),
        ("num_train_timesteps", 500),
    ],
)
def test_unsupported_options_of_the_scheduler_are_refused(tmp_path: Path, option: str, value: object) -> None:
    """They are never ignored."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, option: value}
    with pytest.raises(CheckpointError, match=option):
        sigma_schedule_of(checkpoint_with(tmp_path, **config))


def test_another_scheduler_is_refused(tmp_path: Path) -> None:
    """SD3.5 uses only the flow-match Euler scheduler."""
    with pytest.raises(CheckpointError, match="DDIMScheduler"):
        sigma_schedule_of(checkpoint_with(tmp_path, _class_name="DDIMScheduler"))
