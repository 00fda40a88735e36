"""Recurrent layers, alone and among attention."""

from support.cases.experts import SHARED, SMALL, YARN, case

STATE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 6, "eos_token_id": None}
HEADS = {**STATE, "num_heads": 8, "head_dim": 8, "n_groups": 2}


def recurrent(name, config, model="ForCausalLM", /, base=STATE, **sizes):
    return case(name, config, model, base=base, embedded=False, **sizes)


RECURRENT = [
    recurrent("mamba", "MambaConfig", base=STATE),
    recurrent(
        "mamba-flags",
        "MambaConfig",
        base=STATE,
        use_bias=True,
        use_conv_bias=False,
        expand=3,
        conv_kernel=3,
        time_step_rank=5,
        hidden_act="gelu",
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
    recurrent("mamba-wide", "MambaConfig", intermediate_size=96),
    recurrent("mamba-base", "MambaConfig", "Model", base=STATE),
    recurrent("falcon_mamba", "FalconMambaConfig", base=STATE, mixer_rms_eps=1e-2),
    recurrent(
        "falcon_mamba-flags",
        "FalconMambaConfig",
        base=STATE,
        use_bias=True,
        use_conv_bias=False,
        expand=1,
        conv_kernel=5,
        time_step_rank=3,
        tie_word_embeddings=False,
    ),
    recurrent("falcon_mamba-base", "FalconMambaConfig", "Model", base=STATE),
    recurrent("mamba2", "Mamba2Config", base=HEADS),
    recurrent(
        "mamba2-flags",
        "Mamba2Config",
        base=HEADS,
        use_bias=True,
        use_conv_bias=False,
        n_groups=1,
        num_heads=6,
        head_dim=16,
        expand=3,
        conv_kernel=3,
        tie_word_embeddings=True,
        layer_norm_epsilon=1e-3,
        chunk_size=8,
    ),
    # The reference forgets the limit when it decodes token by token.
    recurrent("mamba2-limit", "Mamba2Config", base=HEADS, n_groups=8, time_step_limit=(0.6, 0.8), writes=False),
    recurrent("mamba2-base", "Mamba2Config", "Model", base=HEADS, num_heads=4, head_dim=16),
]
NEXT = {
    **SHARED,
    "head_dim": 16,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
NEXTS = [
    case("qwen3_next", "Qwen3NextConfig", base=NEXT, num_hidden_layers=4),
    case(
        "qwen3_next-flags",
        "Qwen3NextConfig",
        base=NEXT,
        num_hidden_layers=5,
        decoder_sparse_step=2,
        attention_bias=True,
        norm_topk_prob=False,
        tie_word_embeddings=True,
        partial_rotary_factor=0.5,
        linear_conv_kernel_dim=4,
        layer_types=["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"],
    ),
    case(
        "qwen3_next-dense",
        "Qwen3NextConfig",
        base=NEXT,
        mlp_only_layers=[0, 1, 2],
        rope_parameters={**YARN, "partial_rotary_factor": 1.0},
        full_attention_interval=2,
        linear_num_value_heads=2,
    ),
    case(
        "qwen3_next-base",
        "Qwen3NextConfig",
        "Model",
        base=NEXT,
        layer_types=["full_attention", "linear_attention", "full_attention"],
        mlp_only_layers=[1],
        num_key_value_heads=4,
    ),
]
JAMBA = {
    **SMALL,
    "num_hidden_layers": 6,
    "num_experts": 4,
    "mamba_d_state": 6,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
}
BAMBA = {**SMALL, "mamba_n_heads": 4, "mamba_d_state": 6, "attn_layer_indices": [1]}
HYBRIDS = [
    case("jamba", "JambaConfig", base=JAMBA),
    case(
        "jamba-flags",
        "JambaConfig",
        base=JAMBA,
        expert_layer_period=3,
        expert_layer_offset=0,
        mamba_proj_bias=True,
        mamba_d_conv=3,
        mamba_conv_bias=False,
        mamba_dt_rank=5,
        mamba_expand=1,
        tie_word_embeddings=True,
        num_experts_per_tok=3,
    ),
    case(
        "jamba-dense",
        "JambaConfig",
        base=JAMBA,
        num_experts=1,
        num_experts_per_tok=1,
        attn_layer_period=9,
        attn_layer_offset=5,
    ),
    case("jamba-base", "JambaConfig", "Model", base=JAMBA, attn_layer_period=1, attn_layer_offset=0),
    case("bamba", "BambaConfig", base=BAMBA),
    case(
        "bamba-flags",
        "BambaConfig",
        base=BAMBA,
        mamba_n_groups=2,
        mamba_n_heads=8,
        mamba_expand=3,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        attn_layer_indices=[0, 2],
        mamba_d_conv=3,
    ),
    case("bamba-limit", "BambaConfig", base=BAMBA, attn_layer_indices=[2], time_step_limit=(0.6, 0.8), writes=False),
    case("bamba-base", "BambaConfig", "Model", base=BAMBA),
]

FALCON = {**SMALL, "mamba_d_ssm": 48, "mamba_n_heads": 4, "mamba_d_state": 6, "key_multiplier": 0.6}
FALCONS = [
    case(
        "falcon_h1",
        "FalconH1Config",
        base=FALCON,
        embedding_multiplier=1.5,
        lm_head_multiplier=0.4,
        mlp_multipliers=[0.8, 0.7],
        attention_in_multiplier=0.9,
        attention_out_multiplier=1.2,
        ssm_in_multiplier=1.1,
        ssm_out_multiplier=0.6,
        ssm_multipliers=[0.7, 1.3, 0.9, 1.4, 0.5],
    ),
    case(
        "falcon_h1-flags",
        "FalconH1Config",
        base=FALCON,
        mamba_n_heads=8,
        mamba_n_groups=2,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        mamba_d_conv=3,
    ),
    case("falcon_h1-base", "FalconH1Config", "Model", base=FALCON, mamba_d_head=12, mamba_rms_norm=True),
]

NEMOTRON = {
    **{name: SMALL[name] for name in SMALL if name != "num_hidden_layers"},
    "head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "ssm_state_size": 5,
    "n_routed_experts": 4,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
}
MAMBA, SEES = "linear_attention", "full_attention"
NEMOTRONS = [
    case("nemotron_h", "NemotronHConfig", base=NEMOTRON, layers_block_type=[MAMBA, "mlp", SEES, "mlp", MAMBA]),
    case(
        "nemotron_h-experts",
        "NemotronHConfig",
        base=NEMOTRON,
        layers_block_type=[MAMBA, "moe", SEES, "moe"],
        moe_latent_size=12,
        n_group=2,
        norm_topk_prob=False,
        routed_scaling_factor=1.7,
    ),
    case(
        "nemotron_h-flags",
        "NemotronHConfig",
        base=NEMOTRON,
        layers_block_type=["moe", MAMBA, "mlp", SEES],
        use_bias=True,
        use_conv_bias=False,
        tie_word_embeddings=True,
        mlp_hidden_act="gelu",
        conv_kernel=3,
        n_groups=1,
    ),
    case("nemotron_h-base", "NemotronHConfig", "Model", base=NEMOTRON, layers_block_type=[MAMBA, "moe", SEES, "mlp"]),
]

GRIFFIN = {**SMALL, "num_hidden_layers": 4, "attention_window_size": 7}
GRIFFINS = [
    case("recurrent_gemma", "RecurrentGemmaConfig", base=GRIFFIN),
    # Its own cache has the convolution's state as wide as the model, whatever lru_width says.
    case(
        "recurrent_gemma-flags",
        "RecurrentGemmaConfig",
        base=GRIFFIN,
        lru_width=48,
        conv1d_width=3,
        block_types=["attention", "recurrent"],
        num_key_value_heads=1,
        attention_bias=True,
        logits_soft_cap=3.0,
        hidden_activation="relu",
        tie_word_embeddings=False,
        writes=False,
    ),
    case("recurrent_gemma-base", "RecurrentGemmaConfig", "Model", base=GRIFFIN, num_attention_heads=2),
]

WKV = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "eos_token_id": None, "bos_token_id": None}
# In eval mode the reference halves weights and stream every `rescale_every` layers, which norms undo but for their eps.
WKVS = [
    recurrent("rwkv", "RwkvConfig", base=WKV, rows=1),
    # Its own state is as wide as the model, whatever attention_hidden_size says.
    recurrent(
        "rwkv-flags",
        "RwkvConfig",
        base=WKV,
        attention_hidden_size=48,
        intermediate_size=56,
        layer_norm_epsilon=1e-3,
        tie_word_embeddings=True,
        rescale_every=0,
        use_cache=False,
        writes=False,
    ),
    recurrent("rwkv-base", "RwkvConfig", "Model", base=WKV),
]

XLSTM = {"vocab_size": 97, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4, "ffn_proj_factor": 0.7}
XLSTMS = [
    case("xlstm", "xLSTMConfig", base=XLSTM),
    # Its own state has other widths than its layers where these are no multiples of 64.
    case(
        "xlstm-flags",
        "xLSTMConfig",
        base={**XLSTM, "hidden_size": 48},
        use_bias=True,
        qk_dim_factor=0.25,
        v_dim_factor=1.5,
        ffn_round_up_to_multiple_of=10,
        gate_soft_cap=3.0,
        output_logit_soft_cap=2.0,
        norm_eps=1e-3,
        eps=1e-2,
        chunk_size=5,
        use_cache=False,
        writes=False,
    ),
    case("xlstm-base", "xLSTMConfig", "Model", base=XLSTM, num_hidden_layers=3),
]

CASES = [*RECURRENT, *NEXTS, *HYBRIDS, *FALCONS, *NEMOTRONS, *GRIFFINS, *WKVS, *XLSTMS]
