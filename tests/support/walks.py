"""Walks: tests of one statement over very many cases. Of each, every so-many-th case runs each time, the others with
the slow ones (`make test-slow`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

WALKS = {
    "test_activations": (3, "test_random_models_keep_what_autograd_saves test_every_choice_keeps_what_autograd_saves"),
    "test_costs_cache": (
        3,
        "test_every_choice_of_every_axis_keeps_what_is_counted test_the_hf_engine_keeps_what_transformers_does",
    ),
    "test_costs_flops": (2, "test_a_packaged_model_costs_what_is_counted"),
    "test_costs_params": (3, "test_every_choice_of_every_axis_holds_what_is_counted"),
    "test_devices": (4, "test_decoding_token_by_token_equals_one_pass"),
    "test_every_yaml": (
        3,
        "test_packed_documents_equal_separate_ones "
        "test_no_token_sees_a_later_one_in_a_decoder_and_every_one_does_in_an_encoder "
        "test_padded_rows_equal_the_rows_alone test_a_gradient_reaches_every_parameter",
    ),
    "test_families": (
        3,
        "test_padded_rows_equal_the_rows_alone_on_either_side "
        "test_each_layers_output_equals_the_references "
        "test_an_unknown_tensor_and_a_missing_one_are_named "
        "test_the_hub_style_of_a_config_says_the_same "
        "test_export_gives_back_every_tensor_bit_for_bit_and_loads "
        "test_the_spec_alone_says_the_config "
        "test_greedy_continuation_with_a_cache_equals_the_references",
    ),
    "test_families_hub": (3, "test_a_file_that_leaves_fields_out_reads_as_transformers_reads_it"),
    "test_flash": (
        3,
        "test_every_case_equals_eager_forward_and_backward_or_is_refused "
        "test_every_architecture_gives_under_auto_what_eager_does "
        "test_packed_documents_and_padded_rows_are_what_eager_makes_of_them "
        "test_decoding_through_the_cache_is_the_whole_pass",
    ),
    "test_fuzz": (4, "test_odd_input_ends_with_a_result_or_a_line"),
    "test_generate": (3, "test_rows_padded_on_the_left_get_what_they_get_alone"),
    "test_generate_peak": (3, "test_prefill_and_decode_take_what_a_real_run_takes"),
    "test_guide": (3, "test_what_random_weights_finish_validates"),
    "test_init": (3, "test_tensors_of_the_same_name_and_shape_start_equal_in_two_architectures"),
    "test_multimodal": (
        4,
        "test_what_is_not_read_is_said_with_its_parameters "
        "test_logits_equal_the_whole_models_on_text "
        "test_greedy_continuation_equals_the_whole_models "
        "test_written_back_all_is_as_it_was",
    ),
    "test_packed": (3, "test_a_decoding_step_waits_for_no_number_of_the_devices"),
    "test_prepare": (
        3,
        "test_every_exact_way_gives_what_the_model_gave "
        "test_every_choice_gives_what_it_gave_and_is_what_it_was_once_undone "
        "test_every_lower_precision_stays_within_its_bound",
    ),
    "test_published_rest": (2, "test_the_active_count_leaves_out_idle_experts"),
    "test_recurrent": (
        3,
        "test_padding_changes_nothing_wherever_it_stands test_packed_documents_equal_separate_ones "
        "test_a_row_in_pieces_of_any_length_equals_the_row_whole "
        "test_chunks_equal_the_recurrence_forward_and_backward_from_any_state",
    ),
    "test_families_tasks": (
        3,
        "test_a_class_with_a_head_for_a_task_is_written_as_it_was_read "
        "test_logits_of_a_class_with_a_head_for_a_task_equal_the_references",
    ),
    "test_checkpoint": (
        2,
        "test_what_is_loaded_is_the_architecture_and_the_weights_that_were_saved",
    ),
    "test_beams": (
        2,
        "test_the_best_beams_are_those_of_transformers_with_other_requests_beside_them",
    ),
    "test_recording": (
        3,
        "test_what_is_replayed_has_the_bits_of_what_is_run",
    ),
    "test_explain": (
        2,
        "test_every_choice_of_every_axis_explains_itself",
    ),
    "test_engine_memory": (
        2,
        "test_a_prompt_that_came_before_costs_a_page_and_an_interval_at_most "
        "test_reuse_doubles_what_is_kept_at_checkpoints_and_nothing_else",
    ),
    "test_published": (
        2,
        "test_the_total_is_what_the_reference_implementation_allocates "
        "test_every_file_says_what_it_is_and_where_it_comes_from",
    ),
    "test_stats_kernels": (
        3,
        "test_what_is_asked_is_what_a_real_pass_asks",
    ),
    "test_fp8": (
        3,
        "test_of_every_choice_the_products_of_attention_and_feed_forward_are_planned_for_and_no_others",
    ),
    "test_new": (
        2,
        "test_each_model_of_the_tour_is_plain_and_priced_and_built",
    ),
    "test_published_configs": (
        2,
        "test_a_published_config_is_priced_to_the_parameter",
    ),
    "test_pipeline": (
        2,
        "test_a_stage_that_is_priced_has_the_parameters_of_the_one_that_is_built",
    ),
}
"""By file: of how many cases one runs each time, and the tests."""

_EACH = {(file, name): n for file, (n, names) in WALKS.items() for name in names.split()}


def mark_walks(items: Iterable[pytest.Item]) -> None:
    """Mark the cases of walks slow, but for every n-th."""
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        key = item.path.stem, getattr(item, "originalname", item.name)
        if n := _EACH.get(key):
            if seen[key] % n and "slow" not in item.keywords:
                item.add_marker(pytest.mark.slow)
            seen[key] += 1
