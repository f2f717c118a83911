"""AUTOMATIC1111's settings, as in `override_settings` and `POST /sdapi/v1/options`, and their effect here.

Nearly all concern its web pages, its files, other samplers, img2img or other model families. They cannot change an
image that is generated here from text, and are accepted at any value. Settings that would change it are accepted at
AUTOMATIC1111's own default, and at values that turn something off. At other values they are refused by name.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/shared_options.py and the options of its built-in extensions;
lllyasviel/stable-diffusion-webui-forge. That `CLIP_stop_at_last_layers` changes nothing in Stable Diffusion 3:
modules/models/sd3/sd3_cond.py, whose text encoders do not read it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from sd35.api.dialects.automatic1111.fields import as_flag, as_number, is_unset
from sd35.api.errors import ApiError, FieldError, echo

_Value: TypeAlias = str | int | bool
_CHECKPOINT, _PNG_INFO = "sd_model_checkpoint", "enable_pnginfo"
_MAX_NAMED_SETTINGS = 10  # invalid settings that an error names; the rest is counted
_UNKNOWN = "no value, for AUTOMATIC1111 1.10 has no such setting"

# Settings that change an image, and the values at which they do not. None, "" and [] are always accepted.
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
    "emphasis": ("Original", "None"),  # prompts are plain text here, which is None; Original is the default
    "use_old_emphasis_implementation": (False,),
    "comma_padding_backtrack": (20,),
    "randn_source": ("GPU", "CPU"),  # noise is the same on all devices here
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

_CHANGES_NOTHING = frozenset(
    """
    add_model_hash_to_info add_model_name_to_info add_user_name_to_info add_vae_hash_to_info add_vae_name_to_info
    add_version_to_infotext api_enable_requests api_forbid_local_requests api_useragent auto_backcompat
    auto_launch_browser auto_vae_precision auto_vae_precision_bfloat16 batch_cond_uncond beta_dist_alpha
    beta_dist_beta cache_fp16_weight canvas_auto_expand canvas_blur_prompt canvas_disabled_functions
    canvas_hotkey_adjust canvas_hotkey_fullscreen canvas_hotkey_grow_brush canvas_hotkey_move canvas_hotkey_overlap
    canvas_hotkey_reset canvas_hotkey_shrink_brush canvas_hotkey_zoom canvas_show_tooltip clean_temp_dir_at_start
    CLIP_stop_at_last_layers code_former_weight compact_prompt_box cross_attention_optimization dat_enabled_models
    DAT_tile DAT_tile_overlap dataset_filename_join_string dataset_filename_word_regex ddim_discretize
    deepbooru_escape deepbooru_filter_tags deepbooru_sort_alpha deepbooru_use_spaces dimensions_and_batch_together
    directories_filename_pattern directories_max_prompt_words disable_all_extensions disable_mmap_load_safetensors
    disable_token_counters disable_weights_auto_swap disabled_extensions do_not_add_watermark do_not_show_images
    dont_fix_second_order_samplers_schedule dump_stacks_on_signal enable_batch_seeds enable_console_prompts
    enable_emphasis enable_prompt_comments enable_reloading_ui_scripts enable_upscale_progressbar ESRGAN_tile
    ESRGAN_tile_overlap eta_ancestral eta_ddim eta_noise_seed_delta export_for_4chan
    extra_networks_add_text_separator extra_networks_card_description_is_html extra_networks_card_height
    extra_networks_card_order extra_networks_card_order_field extra_networks_card_show_desc
    extra_networks_card_text_scale extra_networks_card_width extra_networks_default_multiplier
    extra_networks_dir_button_function extra_networks_hidden_models extra_networks_show_hidden_directories
    extra_networks_tree_view_default_enabled extra_networks_tree_view_default_width extra_networks_tree_view_style
    extra_options_accordion extra_options_cols extra_options_img2img extra_options_txt2img face_restoration_model
    face_restoration_unload font forge_async_loading forge_canvas_plain forge_canvas_toolbar_always
    forge_inference_memory forge_pin_shared_memory forge_preset forge_unet_storage_dtype fp8_storage gallery_height
    gradio_theme gradio_themes_cache grid_background_color grid_extended_filename grid_format grid_only_if_multiple
    grid_prevent_empty_spots grid_save grid_save_to_dirs grid_text_active_color grid_text_inactive_color
    grid_zip_filename_pattern hidden_tabs hide_ldm_prints hide_samplers hires_button_gallery_insert
    hires_fix_refiner_pass hires_fix_show_prompts hires_fix_show_sampler hires_fix_use_firstpass_conds
    img2img_autosize img2img_background_color img2img_batch_show_results_limit img2img_batch_use_original_name
    img2img_color_correction img2img_editor_height img2img_extra_noise img2img_fix_steps
    img2img_inpaint_mask_brush_color img2img_inpaint_mask_high_contrast img2img_inpaint_mask_scribble_alpha
    img2img_inpaint_sketch_default_brush_color img2img_settings_accordion img2img_sketch_default_brush_color
    img_downscale_threshold img_max_size_mp include_styles_into_token_counters infotext_explanation
    infotext_skip_pasting infotext_styles initial_noise_multiplier inpainting_mask_weight
    interrogate_clip_dict_limit interrogate_clip_max_length interrogate_clip_min_length interrogate_clip_num_beams
    interrogate_clip_skip_categories interrogate_deepbooru_score_threshold interrogate_keep_models_in_memory
    interrogate_return_ranks interrogate_use_builtin_artists interrupt_after_current jpeg_quality
    js_live_preview_in_modal_lightbox js_modal_lightbox js_modal_lightbox_gamepad js_modal_lightbox_gamepad_repeat
    js_modal_lightbox_initially_zoomed k_sched_type keyedit_delimiters keyedit_delimiters_whitespace keyedit_move
    keyedit_precision_attention keyedit_precision_extra ldsr_cached ldsr_steps list_hidden_files
    live_preview_allow_lowvram_full live_preview_content live_preview_fast_interrupt live_preview_refresh_period
    live_previews_enable live_previews_image_format localization lora_add_hashes_to_infotext lora_apply_to_outputs
    lora_bundled_ti_to_infotext lora_filter_disabled lora_functional lora_hide_unknown_for_versions
    lora_in_memory_limit lora_not_found_gradio_warning lora_not_found_warning_console lora_preferred_name
    lora_show_all memmon_poll_rate multiple_tqdm n_rows no_dpmpp_sde_batch_determinism notification_audio
    notification_volume open_dir_button_choice outdir_extras_samples outdir_grids outdir_img2img_grids
    outdir_img2img_samples outdir_init_images outdir_samples outdir_save outdir_txt2img_grids outdir_txt2img_samples
    overlay_inpaint pad_cond_uncond pad_cond_uncond_v0 persistent_cond_cache pin_memory
    postprocessing_disable_in_extras postprocessing_existing_caption_action postprocessing_operation_order
    prevent_screen_sleep_during_generation print_hypernet_extra profiling_activities profiling_enable
    profiling_explanation profiling_filename profiling_profile_memory profiling_record_shapes profiling_with_stack
    quick_setting_list quicksettings quicksettings_list realesrgan_enabled_models refiner_switch_by_sample_steps
    restore_config_state_file return_grid return_mask return_mask_composite rho s_min_uncond_all s_noise s_tmax
    s_tmin samplers_in_dropdown samples_filename_pattern samples_log_stdout samples_save save_images_add_number
    save_images_before_color_correction save_images_before_face_restoration save_images_before_highres_fix
    save_images_replace_action save_incomplete_images save_init_img save_mask save_mask_composite
    save_optimizer_state save_selected_only save_to_dirs save_training_settings_to_txt save_txt save_write_log_csv
    SCUNET_tile SCUNET_tile_overlap sd3_enable_t5 sd_checkpoint_cache sd_checkpoint_dropdown_use_short
    sd_checkpoint_hash sd_checkpoints_keep_in_cpu sd_checkpoints_limit sd_vae_as_default sd_vae_checkpoint_cache
    sd_vae_encode_method sd_vae_explanation sd_vae_overrides_per_model_preferences
    sd_webui_modal_lightbox_icon_opacity sd_webui_modal_lightbox_toolbar_opacity sdxl_clip_l_skip sdxl_crop_left
    sdxl_crop_top sdxl_refiner_high_aesthetic_score sdxl_refiner_low_aesthetic_score send_seed send_size
    set_scale_by_when_changing_upscaler show_gradio_deprecation_warnings show_progress_approximate
    show_progress_every_n_steps show_progress_grid show_progress_in_title show_progress_type show_progressbar
    show_warnings sigma_max sigma_min SWIN_tile SWIN_tile_overlap SWIN_torch_compile
    tabs_without_quick_settings_bar target_side_length temp_dir textual_inversion_add_hashes_to_infotext
    textual_inversion_print_at_load token_merging_ratio_hr token_merging_ratio_img2img training_enable_tensorboard
    training_image_repeats_per_epoch training_tensorboard_flush_every training_tensorboard_save_images
    training_write_csv_every training_xattention_optimizations txt2img_settings_accordion
    ui_extra_networks_tab_reorder ui_reorder_list ui_tab_order uni_pc_lower_order_final uni_pc_order
    uni_pc_skip_type uni_pc_variant unload_models_when_training upcast_attn upscaler_for_img2img
    upscaling_max_images_in_cache use_downcasted_alpha_bar use_old_hires_fix_width_height
    use_old_karras_scheduler_sigmas use_old_scheduling use_original_name_batch use_save_to_dirs_for_ui
    use_scale_latent_for_hires_fix use_upscaler_name_as_suffix webp_lossless
    """.split()  # noqa: SIM905  a list would be 300 lines
)


class Settings(NamedTuple):
    """The settings that are honoured. `checkpoint` is None if the client names none."""

    checkpoint: str | None
    has_metadata: bool


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Read settings. Raises ApiError (422), which names those that would change the image."""
    allowed = {name: _allowed(name, value) for name, value in given.items()}
    errors = [
        FieldError(field=echo(name), got=echo(given[name]), allowed=text) for name, text in allowed.items() if text
    ]
    if len(errors) > _MAX_NAMED_SETTINGS:
        more = f"{len(errors) - _MAX_NAMED_SETTINGS} more settings"
        errors = [*errors[:_MAX_NAMED_SETTINGS], FieldError(field="override_settings", got=more, allowed=_UNKNOWN)]
    if errors:
        raise ApiError.from_fields(422, errors)
    checkpoint = given.get(_CHECKPOINT)
    return Settings(
        None if is_unset(checkpoint) else str(checkpoint).strip(), as_flag(given.get(_PNG_INFO)) is not False
    )


def _allowed(name: str, value: object) -> str | None:
    """Return the allowed values of a setting, or None if its value is allowed."""
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
    if value in (None, "", []) or any(_is_same(value, each) for each in values):
        return None
    *others, last = [*(str(each).lower() if isinstance(each, bool) else str(each) for each in values), "empty"]
    return f"{', '.join(others)} or {last}" if others else last


def _is_same(value: object, other: _Value) -> bool:
    """Compare a value with one of the table: text without its case, numbers and switches also as text."""
    if isinstance(other, bool):
        return as_flag(value) is other
    if isinstance(other, int):
        number = as_number(value)
        return isinstance(number, int | float) and not isinstance(number, bool) and number == other
    return isinstance(value, str) and value.strip().casefold() == other.casefold()
