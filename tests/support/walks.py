"""What `make test` leaves to `make test-slow`, so that it ends in ten minutes on two cores.

Walks are tests of one statement over very many cases: every so-many-th case runs each time. Long tests take three
seconds or more; shorter ones stand beside them in their files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

WALKS = {
    "test_activations": (4, "test_random_models_keep_what_autograd_saves test_every_choice_keeps_what_autograd_saves"),
    "test_costs_cache": (
        6,
        "test_every_choice_of_every_axis_keeps_what_is_counted test_the_hf_engine_keeps_what_transformers_does",
    ),
    "test_costs_flops": (6, "test_a_packaged_model_costs_what_is_counted"),
    "test_costs_params": (3, "test_every_choice_of_every_axis_holds_what_is_counted"),
    "test_config": (8, "test_a_model_and_its_own_file_answer_every_swap_alike"),
    "test_devices": (4, "test_decoding_token_by_token_equals_one_pass"),
    "test_every_yaml": (
        8,
        "test_packed_documents_equal_separate_ones "
        "test_no_token_sees_a_later_one_in_a_decoder_and_every_one_does_in_an_encoder "
        "test_the_model_compiles_whole_without_a_graph_break test_padded_rows_equal_the_rows_alone "
        "test_a_gradient_reaches_every_parameter",
    ),
    "test_families": (
        8,
        "test_padded_rows_equal_the_rows_alone_on_either_side test_each_layers_output_equals_the_references "
        "test_an_unknown_tensor_and_a_missing_one_are_named test_the_hub_style_of_a_config_says_the_same "
        "test_export_gives_back_every_tensor_bit_for_bit_and_loads test_the_spec_alone_says_the_config "
        "test_greedy_continuation_with_a_cache_equals_the_references",
    ),
    "test_families_hub": (3, "test_a_file_that_leaves_fields_out_reads_as_transformers_reads_it"),
    "test_flash": (
        10,
        "test_every_case_equals_eager_forward_and_backward_or_is_refused "
        "test_every_architecture_gives_under_auto_what_eager_does "
        "test_packed_documents_and_padded_rows_are_what_eager_makes_of_them "
        "test_decoding_through_the_cache_is_the_whole_pass "
        "test_a_run_that_names_a_flash_kernel_trains_by_it_to_the_end_and_says_by_what_it_samples",
    ),
    "test_gguf_export": (
        8,
        "test_a_model_that_was_written_and_read_gives_the_references_logits "
        "test_so_it_is_where_the_converter_changes_names_and_layout "
        "test_every_tensor_of_experts_and_states_is_the_one_that_the_converter_writes "
        "test_the_file_is_the_one_that_llama_cpps_converter_writes",
    ),
    "test_gguf_encoders": (6, "test_a_model_that_was_written_and_read_gives_the_references_values"),
    "test_drafts": (2, "test_a_draft_model_keeps_of_its_window_what_it_may_come_back_to"),
    "test_held_weights": (8, "test_a_held_base_computes_as_its_dequantised_weights_in_float32"),
    "test_hints": (6, "test_what_a_line_tells_to_write_works_in_the_file_and_on_the_command_line"),
    "test_peft_reading": (6, "test_a_run_goes_on_with_an_adapter_from_pefts_own_logits"),
    "test_rate_optimum": (3, "test_equal_arms_at_searched_rates_are_told_apart_in_one_experiment_of_twenty"),
    "test_fuzz": (80, "test_odd_input_ends_with_a_result_or_a_line"),
    "test_generate": (
        3,
        "test_rows_padded_on_the_left_get_what_they_get_alone test_a_prompt_in_chunks_gives_the_logits_of_one_forward "
        "test_greedy_generation_equals_the_full_forward_for_every_choice",
    ),
    "test_generate_peak": (3, "test_prefill_and_decode_take_what_a_real_run_takes"),
    "test_guide": (3, "test_what_random_weights_finish_validates"),
    "test_init": (3, "test_tensors_of_the_same_name_and_shape_start_equal_in_two_architectures"),
    "test_multimodal": (
        8,
        "test_what_is_not_read_is_said_with_its_parameters test_logits_equal_the_whole_models_on_text "
        "test_greedy_continuation_equals_the_whole_models test_written_back_all_is_as_it_was "
        "test_padded_rows_equal_the_whole_models_rows_alone_on_either_side",
    ),
    "test_packed": (
        3,
        "test_a_decoding_step_waits_for_no_number_of_the_devices "
        "test_a_decoding_step_makes_no_tensor_of_numbers_of_the_hosts",
    ),
    "test_prepare": (
        3,
        "test_every_exact_way_gives_what_the_model_gave "
        "test_every_choice_gives_what_it_gave_and_is_what_it_was_once_undone "
        "test_every_lower_precision_stays_within_its_bound",
    ),
    "test_published_rest": (
        2,
        "test_the_active_count_leaves_out_idle_experts test_the_model_is_the_one_that_its_released_config_describes",
    ),
    "test_recurrent": (
        6,
        "test_padding_changes_nothing_wherever_it_stands test_packed_documents_equal_separate_ones "
        "test_a_row_in_pieces_of_any_length_equals_the_row_whole "
        "test_chunks_equal_the_recurrence_forward_and_backward_from_any_state",
    ),
    "test_families_tasks": (
        6,
        "test_a_class_with_a_head_for_a_task_is_written_as_it_was_read "
        "test_logits_of_a_class_with_a_head_for_a_task_equal_the_references",
    ),
    "test_checkpoint": (2, "test_what_is_loaded_is_the_architecture_and_the_weights_that_were_saved"),
    "test_beams": (4, "test_the_best_beams_are_those_of_transformers_with_other_requests_beside_them"),
    "test_recording": (3, "test_what_is_replayed_has_the_bits_of_what_is_run"),
    "test_explain": (
        8,
        "test_every_choice_of_every_axis_explains_itself "
        "test_every_figure_of_a_packaged_model_is_what_its_formula_gives test_packed_documents_are_explained",
    ),
    "test_engine_memory": (
        2,
        "test_a_prompt_that_came_before_costs_a_page_and_an_interval_at_most "
        "test_reuse_doubles_what_is_kept_at_checkpoints_and_nothing_else",
    ),
    "test_published": (
        6,
        "test_the_total_is_what_the_reference_implementation_allocates "
        "test_every_file_says_what_it_is_and_where_it_comes_from",
    ),
    "test_stats_kernels": (3, "test_what_is_asked_is_what_a_real_pass_asks"),
    "test_fp8": (3, "test_of_every_choice_the_products_of_attention_and_feed_forward_are_planned_for_and_no_others"),
    "test_new": (2, "test_each_model_of_the_tour_is_plain_and_priced_and_built"),
    "test_published_configs": (4, "test_a_published_config_is_priced_to_the_parameter"),
    "test_schema": (12, "test_a_packaged_model_is_valid_in_its_plain_form"),
    "test_hf_causal": (
        5,
        "test_offloaded_weights_compute_what_they_compute_in_memory test_rows_that_are_read_by_page_are_the_same "
        "test_padded_rows_are_generated_as_zoo_generates_each_alone "
        "test_a_device_map_of_one_device_changes_no_weight",
    ),
    "test_solve": (2, "test_the_answer_fits_and_one_more_does_not"),
    "test_solve_mesh": (2, "test_memory_is_the_price_of_the_set_up"),
    "test_named_adapters": (
        4,
        "test_a_request_gets_beside_other_adapters_what_it_gets_from_its_own_alone "
        "test_the_base_may_be_quantised_or_prepared_and_rows_may_be_scaled_or_kept_apart "
        "test_a_quantised_base_is_held_as_it_is_stored_and_computes_what_it_computes_alone",
    ),
    "test_parallel_faults": (4, "test_what_processes_cannot_share_is_refused_before_one_starts"),
    "test_peak": (8, "test_the_peak_of_a_step_is_torch_s_to_a_percent_and_a_half"),
    "test_matching": (3, "test_what_cannot_be_matched_says_why"),
    "test_engine": (
        4,
        "test_a_request_gets_in_any_schedule_what_it_gets_alone "
        "test_a_request_gets_in_deterministic_mode_the_bits_that_it_gets_alone "
        "test_a_request_gets_in_a_crowded_schedule_what_it_gets_alone",
    ),
    "test_roofline": (4, "test_a_step_reads_the_cache_that_is_kept_and_every_weight_but_the_tables"),
    "test_pipeline": (
        2,
        "test_a_stage_that_is_priced_has_the_parameters_of_the_one_that_is_built test_stages_compute_in_torchs_order",
    ),
    "test_core": (2, "test_a_kind_is_found_wherever_its_class_stands"),
    "test_doctor": (6, "test_a_cell_says_whether_the_kernel_runs_here"),
    "test_flex": (4, "test_what_is_traced_equals_eager test_gradients_on_cuda_are_eagers"),
    "test_holding": (3, "test_a_run_with_adapters_holds_and_saves_what_is_priced"),
    "test_kernels": (2, "test_attention_compiles_into_one_graph_with_its_backward"),
    "test_paged": (
        4,
        "test_a_request_gets_what_it_gets_alone_though_prompts_share_passes_by_page "
        "test_a_request_read_by_page_gets_what_it_gets_alone "
        "test_rows_of_other_lengths_get_the_logits_of_a_full_forward",
    ),
    "test_quantised": (4, "test_a_quantised_folder_is_the_model_of_its_dequantised_weights"),
    "test_recipes": (4, "test_the_arms_of_a_recipe_cost_what_it_says_they_do"),
    "test_setting_pages": (2, "test_the_example_is_a_command_that_composes"),
    "test_engine_mutants": (2, "test_a_mistake_is_caught"),
    "test_porting": (3, "test_what_cannot_be_drafted_is_said_in_one_line"),
    "test_routing": (3, "test_a_mixture_compiles_whole_and_its_router_learns"),
    "test_objectives": (3, "test_what_a_model_cannot_learn_is_refused_before_anything_is_written"),
    "test_dialect": (2, "test_a_kind_takes_the_name_of_every_listed_choice"),
    "test_train_contrastive": (3, "test_models_and_records_that_do_not_fit_are_refused"),
    "test_peft_files": (2, "test_peft_loads_exported_adapters_onto_the_hugging_face_model"),
    "test_plot": (2, "test_any_kind_of_model_can_be_drawn"),
    "test_averages": (2, "test_a_run_that_lost_its_last_steps_repeats_them_to_the_last_bit"),
    "test_longformer": (2, "test_it_compiles_whole_without_a_graph_break"),
    "test_eval": (3, "test_the_loss_is_that_of_transformers_token_by_token"),
    "test_compiling": (2, "test_no_trial_is_made_where_compiling_cannot_pay"),
    "test_bench": (2, "test_three_steps_of_training_give_the_losses_of_transformers"),
    "test_failing_runs": (2, "test_a_full_disk_and_a_lack_of_memory_end_the_run_with_one_line"),
    "test_ladder": (3, "test_a_ladder_that_cannot_be_is_refused_in_one_line"),
    "test_train": (3, "test_a_packaged_schedule_is_positive_and_reaches_its_peak_in_runs_of_any_length"),
    "test_rows": (3, "test_joined_parts_err_no_more_than_twice_what_eager_does"),
    "test_graphs": (4, "test_a_step_that_was_recorded_gives_other_rows_what_they_get_alone"),
    "test_train_preferences": (
        2,
        "test_kto_learns_which_answers_are_good test_other_objectives_learn_to_prefer_the_chosen_answers "
        "test_what_does_not_go_together_is_told",
    ),
    "test_deterministic": (2, "test_a_request_gets_the_bits_that_it_gets_alone"),
    "test_train_objectives": (2, "test_a_run_resumes_to_the_bit"),
    "test_data_lengths": (3, "test_the_bytes_of_tokens_add_up_to_the_text"),
    "test_states": (2, "test_states_are_those_that_the_optimizer_holds_after_a_step"),
    "test_model_figures": (2, "test_a_packaged_models_figures_have_no_fault"),
    "test_rules": (2, "test_every_packaged_model_has_every_rule"),
}
"""By file: of how many cases one runs each time, and the tests."""

LONG = {
    "test_bench_races": "test_ragged_requests_get_from_every_contender_what_they_get_alone",
    "test_convert": "test_a_model_is_after_its_export_what_it_was_before_and_can_be_trained",
    "test_experiments": (
        "test_wide_arms_are_tuned_on_narrow_models_under_mup "
        "test_further_numbers_are_tuned_at_the_rate_that_was_found test_the_same_experiment_is_made_by_flags "
        "test_a_plan_says_which_effect_of_the_source_it_cannot_see "
        "test_a_design_with_looks_adds_seeds_only_while_nothing_is_told "
        "test_an_interrupted_experiment_says_last_how_to_go_on"
    ),
    "test_exported": (
        "test_a_folder_with_a_card_of_its_own_model_is_written_again "
        "test_a_program_with_other_values_is_not_written "
        "test_a_decoder_whose_head_reads_a_rows_last_token_is_a_program "
        "test_an_encoder_gives_hidden_states_logits_and_a_sentences_vector"
    ),
    "test_flex": "test_generation_gives_eagers_tokens_and_compiles_for_no_length",
    "test_host_group": "test_the_others_wait_for_work_of_the_main_process_longer_than_for_a_collective",
    "test_handover": "test_the_line_says_what_was_compared",
    "test_joined_pieces": "test_a_process_holds_one_whole_tensor_at_a_time_while_it_saves",
    "test_ladder": "test_the_speedup_of_an_arm_is_given_at_each_size_with_its_slope",
    "test_merged": "test_what_is_not_read_of_a_folder_is_said_in_one_line_and_stays",
    "test_parallel_costs": (
        "test_the_peak_of_a_process_is_what_is_predicted "
        "test_under_autocast_ranks_and_stages_send_bfloat16_and_lose_nothing_by_it"
    ),
    "test_peft_files": "test_peft_opens_adapters_with_trained_norms_and_more_tokens",
    "test_probe_models": (
        "test_controls_separate_where_one_model_recalls_and_one_is_blind_and_not_where_both_are_alike "
        "test_the_steps_to_solve_are_those_after_which_the_model_answers_nine_in_ten"
    ),
    "test_train_chat": "test_an_export_reads_what_the_template_writes_as_training_did",
    "test_parallel_faults": "test_a_sweep_is_no_work_of_several_processes",
    "test_parallel": (
        "test_a_sample_gathers_the_weights_once_for_all_its_tokens "
        "test_sharded_weights_compute_in_bfloat16_as_one_processs_bfloat16_copies_do"
    ),
    "test_weights_on_meshes": (
        "test_each_process_reads_its_part_of_a_teacher_and_the_student_learns_what_one_process_does"
    ),
    "test_spending": "test_looking_three_times_tells_equal_arms_apart_no_more_often_than_looking_once",
    "test_beside": "test_a_tokenizer_that_was_trained_here_pads_and_cuts_in_transformers",
    "test_config": "test_a_word_in_a_kind_of_layer_keeps_what_the_model_says_and_not_what_the_old_word_was",
    "test_solve_mesh": (
        "test_fewer_tokens_and_a_slow_network_change_the_answer test_only_meshes_that_fit_are_ranked_the_fastest_first"
    ),
    "test_sweeps": "test_the_peak_of_memory_is_begun_anew",
    "test_train_contrastive": "test_a_run_resumes_to_the_bit_and_without_the_folder_that_it_started_from",
    "test_train_preferences": (
        "test_a_forecast_computes_what_its_steps_need test_other_records_are_compared_with_the_starting_weights "
        "test_a_rate_far_above_the_usual_one_from_trained_weights_is_told "
        "test_adapters_have_the_reference_of_their_base test_starting_weights_that_are_not_known_are_told "
        "test_a_run_killed_before_its_first_step_takes_what_is_kept test_other_starting_weights_are_not_mixed_in "
        "test_kto_in_microbatches_and_gone_on_with_has_equal_losses "
        "test_a_run_that_goes_on_for_longer_computes_what_is_lacking"
    ),
    "test_verify": "test_a_wrong_count_is_told_and_exits_with_one test_the_set_up_decides_what_is_checked",
    "test_whole_checks": "test_a_run_whose_loss_does_not_fall_does_not_pass",
    "test_trials": "test_poor_rates_of_an_arm_are_ended_early_and_its_seeds_run_at_the_best",
    "test_graphs": "test_drafts_and_the_steps_of_the_model_that_draws_them_are_recorded",
    "test_scaling": "test_intervals_hold_the_truth_about_as_often_as_they_say",
    "test_balance": "test_biases_even_out_a_load_that_is_not_even",
}
"""By file: the long tests."""

_EACH = {(file, name): n for file, (n, names) in WALKS.items() for name in names.split()}
_LONG = {(file, name) for file, names in LONG.items() for name in names.split()}


def mark_walks(items: Iterable[pytest.Item]) -> None:
    """Mark long tests slow, and the cases of walks but for every n-th."""
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        key = item.path.stem, getattr(item, "originalname", item.name)
        n = _EACH.get(key)
        skipped = key in _LONG or (n and seen[key] % n)
        if skipped and "slow" not in item.keywords:
            item.add_marker(pytest.mark.slow)
        seen[key] += 1
