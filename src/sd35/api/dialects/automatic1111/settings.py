"""AUTOMATIC1111's settings, as in `override_settings` and `POST /sdapi/v1/options`, and their effect here.

Most of the settings concern AUTOMATIC1111's web pages and files, other samplers, img2img or other models. They cannot
change an image that this server generates, so they are accepted at any value. Settings that would change an image are
accepted at AUTOMATIC1111's default, and at values that turn something off. Their other values are refused.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/shared_options.py and the options of its built-in extensions;
lllyasviel/stable-diffusion-webui-forge. `CLIP_stop_at_last_layers` changes nothing in Stable Diffusion 3, because its
text encoders do not read it: modules/models/sd3/sd3_cond.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from sd35.api.dialects.automatic1111.fields import as_flag, as_number, is_unset
from sd35.api.errors import ApiError, FieldError, echo

_Value: TypeAlias = str | int | bool
_CHECKPOINT, _PNG_INFO = "sd_model_checkpoint", "enable_pnginfo"
_MAX_NAMED_SETTINGS = 10  # invalid settings that an error names; if there are more, it gives their number
_UNKNOWN = "nothing, because AUTOMATIC1111 1.10 has no such setting"

# Settings that can change an image, and values at which they change nothing. None, "" and [] are always accepted.
_CHANGES_IMAGE: Mapping[str, tuple[_Value, ...]] = {
    "sd_vae": ("Automatic", "None"),
    "sd_unet": ("Automatic", "None"),
    "sd_hypernetwork": ("None",),
    "sd_lora": ("None",),
    "forge_additional_modules": (),
    "forge_try_reproduce": ("None",),
    "postprocessing_enable_in_main_ui": (),
    "samples_format": ("png",),
    "face_restoration": (False,),
    "tiling": (False,),
    "emphasis": ("Original", "None"),  # prompts are plain text here, as with None; Original is the default
    "use_old_emphasis_implementation": (False,),
    "comma_padding_backtrack": (20,),
    "randn_source": ("GPU", "CPU"),  # here, noise does not depend on the device
    "sd_vae_decode_method": ("Full",),
    "sd_noise_schedule": ("Default",),
    "enable_quantization": (False,),
    "always_discard_next_to_last_sigma": (False,),
    "sgm_noise_multiplier": (False,),
    "s_min_uncond": (0,),
    "s_churn": (0,),
    "skip_early_cond": (0,),
    "token_merging_ratio": (0,),
}

_CHANGES_NOTHING = frozenset(Path(__file__).with_name("settings_without_effect.txt").read_text("utf-8").split())


class Settings(NamedTuple):
    """The settings that have an effect.

    Attributes:
        checkpoint: The title, name or alias of a checkpoint, or None if the client names no checkpoint.
        has_metadata: Whether image files contain their settings (`enable_pnginfo`).
    """

    checkpoint: str | None
    has_metadata: bool


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings that have an effect.

    Raises ApiError with status 422 if a setting would change an image, is unknown or has a wrong type.
    """
    errors = []
    for name, value in given.items():
        if allowed := _allowed_if_refused(name, value):
            errors.append(FieldError(field=echo(name), got=echo(value), allowed=allowed))
    if len(errors) > _MAX_NAMED_SETTINGS:
        count = f"{len(errors)} invalid settings"
        allowed = "settings of AUTOMATIC1111 1.10, at values that do not change images"
        errors = [*errors[:_MAX_NAMED_SETTINGS], FieldError(field="body", got=count, allowed=allowed)]
    if errors:
        raise ApiError.from_fields(422, errors)
    checkpoint = given.get(_CHECKPOINT)
    return Settings(
        checkpoint=None if is_unset(checkpoint) else str(checkpoint).strip(),
        has_metadata=as_flag(given.get(_PNG_INFO)) is not False,
    )


def _allowed_if_refused(name: str, value: object) -> str | None:
    """Return the allowed values of a setting if its value is refused, or None if its value is accepted."""
    if name == _CHECKPOINT:
        is_name = value is None or isinstance(value, str)
        return None if is_name else "a title, name or alias of a checkpoint of /sdapi/v1/sd-models"
    if name == _PNG_INFO:
        flag = as_flag(value)
        return None if flag is None or isinstance(flag, bool) else "true or false"
    if name in _CHANGES_NOTHING:
        return None
    if name not in _CHANGES_IMAGE:
        return None if is_unset(value) else _UNKNOWN
    values = _CHANGES_IMAGE[name]
    if value in (None, "", []) or any(_is_same(value, accepted) for accepted in values):
        return None
    names = [str(accepted).lower() if isinstance(accepted, bool) else str(accepted) for accepted in values]
    return f"{', '.join(names)} or empty" if names else "empty"


def _is_same(value: object, other: _Value) -> bool:
    """Return whether a client's value means `other`, a value of `_CHANGES_IMAGE`.

    Upper and lower case are equal. Numbers and switches may be text.
    """
    if isinstance(other, bool):
        return as_flag(value) is other
    if isinstance(other, int):
        number = as_number(value)
        return isinstance(number, int | float) and not isinstance(number, bool) and number == other
    return isinstance(value, str) and value.strip().casefold() == other.casefold()
