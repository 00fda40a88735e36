"""Encoders of proteins, of several languages and of long texts."""

from support.cases.encoders import SMALL, UNTIED, YARN, case, segments
from support.reference_models import Case

PROTEINS = {
    **SMALL,
    "pad_token_id": 1,
    "mask_token_id": 9,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "layer_norm_eps": 1e-5,
}

ESMS = [
    case("esm", "EsmConfig", "EsmForMaskedLM", base=PROTEINS),
    case("esm-1b", "EsmConfig", "EsmForMaskedLM", base={**PROTEINS, "position_embedding_type": "absolute"}),
    case("esm-norm", "EsmConfig", "EsmForMaskedLM", base=PROTEINS, emb_layer_norm_before=True, rope_theta=300.0),
    case("esm-untied", "EsmConfig", "EsmForMaskedLM", base=PROTEINS, token_dropout=False, **UNTIED),
    case("esm-base", "EsmConfig", "EsmModel", base=PROTEINS, num_attention_heads=2),
]
ESMCS = [
    case("esmc", "EsmcConfig", "EsmcForMaskedLM"),
    case("esmc-biased", "EsmcConfig", "EsmcForMaskedLM", attention_bias=True, mlp_bias=True, rope_parameters=YARN),
    case("esmc-base", "EsmcConfig", "EsmcModel", num_attention_heads=2, hidden_act="gelu"),
]
GTES = [
    case("gte", "GteConfig", "GteForMaskedLM"),
    case(
        "gte-segments", "GteConfig", "GteForMaskedLM", type_vocab_size=3, inputs=segments, hidden_act="relu", **UNTIED
    ),
    case("gte-untyped", "GteConfig", "GteForMaskedLM", type_vocab_size=0, rope_parameters=YARN),
    case("gte-base", "GteConfig", "GteModel", layer_norm_eps=1e-3),
]
FILTER = {
    **SMALL,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 4,
    "pad_token_id": None,
    "eos_token_id": None,
}
LABELS = {"id2label": {0: "O", 1: "B-name", 2: "E-name"}, "label2id": {"O": 0, "B-name": 1, "E-name": 2}}
FILTERS = [
    case(
        "openai_privacy_filter",
        "OpenAIPrivacyFilterConfig",
        "OpenAIPrivacyFilterForTokenClassification",
        base={**FILTER, **LABELS},
    ),
    case(
        "openai_privacy_filter-base",
        "OpenAIPrivacyFilterConfig",
        "OpenAIPrivacyFilterModel",
        base=FILTER,
        rope_parameters=YARN,
    ),
]

# 24 tokens are more than the 14 up to which all is seen.
BIRD = {**SMALL, "block_size": 2, "num_random_blocks": 1}
BIRDS = [
    case("big_bird", "BigBirdConfig", "BigBirdForMaskedLM", base=BIRD, inputs=segments),
    case("big_bird-cut", "BigBirdConfig", "BigBirdForMaskedLM", base={**BIRD, "block_size": 3}, hidden_act="relu"),
    case(
        "big_bird-rescaled",
        "BigBirdConfig",
        "BigBirdForMaskedLM",
        base={**BIRD, "block_size": 1, "num_random_blocks": 3},
        use_bias=False,
        rescale_embeddings=True,
        tokens=23,
        **UNTIED,
    ),
    case("big_bird-full", "BigBirdConfig", "BigBirdForPreTraining", base=BIRD, attention_type="original_full"),
    case("big_bird-short", "BigBirdConfig", "BigBirdForMaskedLM", base=BIRD, block_size=4),
    case("big_bird-base", "BigBirdConfig", "BigBirdModel", base=BIRD),
    Case(
        "big_bird-causal",
        "BigBirdConfig",
        "BigBirdForCausalLM",
        {**BIRD, "attention_type": "original_full", "is_decoder": True},
    ),
]

XL = {"vocab_size": 97, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 56}
XLNETS = [
    case("xlnet", "XLNetConfig", "XLNetLMHeadModel", base=XL, inputs=segments),
    case("xlnet-clamped", "XLNetConfig", "XLNetLMHeadModel", base=XL, clamp_len=7, ff_activation="relu", **UNTIED),
    case("xlnet-base", "XLNetConfig", "XLNetModel", base=XL, n_head=2, layer_norm_eps=1e-3),
]

NYSTROM = {**SMALL, "num_landmarks": 4, "segment_means_seq_len": 24, "conv_kernel_size": 5, "pad_token_id": 1}
NYSTROMS = [
    case("nystromformer", "NystromformerConfig", "NystromformerForMaskedLM", inputs=segments, conv_kernel_size=7),
    case("nystromformer-wide", "NystromformerConfig", "NystromformerForMaskedLM", hidden_act="relu", **UNTIED),
    # The first matrix of the iterations is divided by the largest number of the whole batch.
    case("nystromformer-landmarks", "NystromformerConfig", "NystromformerForMaskedLM", base=NYSTROM, apart=True),
    case("nystromformer-base", "NystromformerConfig", "NystromformerModel", base=NYSTROM, num_landmarks=8, apart=True),
]

CONVS = [
    case("convbert", "ConvBertConfig", "ConvBertForMaskedLM", embedding_size=32, conv_kernel_size=5, inputs=segments),
    case("convbert-factorised", "ConvBertConfig", "ConvBertForMaskedLM", embedding_size=20, hidden_act="relu"),
    case("convbert-groups", "ConvBertConfig", "ConvBertForMaskedLM", embedding_size=32, num_groups=4),
    case("convbert-one", "ConvBertConfig", "ConvBertForMaskedLM", embedding_size=32, head_ratio=4, **UNTIED),
    case("convbert-base", "ConvBertConfig", "ConvBertModel", embedding_size=12, head_ratio=1, conv_kernel_size=3),
]

XLM = {
    "vocab_size": 97,
    "emb_dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "layer_norm_eps": 1e-5,
}
XLMS = [
    Case("xlm", "XLMConfig", "XLMWithLMHeadModel", XLM, writes=False),
    Case("xlm-langs", "XLMConfig", "XLMWithLMHeadModel", {**XLM, "n_langs": 3, "gelu_activation": False}, writes=False),
    Case("xlm-causal", "XLMConfig", "XLMWithLMHeadModel", {**XLM, "causal": True, "n_langs": 2}, writes=False),
    Case("xlm-sequence", "XLMConfig", "XLMForSequenceClassification", {**XLM, "num_labels": 3}, writes=False),
    Case("xlm-tokens", "XLMConfig", "XLMForTokenClassification", {**XLM, "num_labels": 3}, writes=False),
    Case("xlm-base", "XLMConfig", "XLMModel", {**XLM, "n_langs": 2, "use_lang_emb": False}, writes=False),
    Case("flaubert", "FlaubertConfig", "FlaubertWithLMHeadModel", XLM, writes=False),
    Case("flaubert-base", "FlaubertConfig", "FlaubertModel", {**XLM, "n_langs": 2}, writes=False),
]
ULTRA = {
    **SMALL,
    "num_hidden_layers": 4,
    "sliding_window": 4,
    "prediction_head_size": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
ULTRAS = [
    case("ultrabert", "UltrabertConfig", "UltrabertForMaskedLM", base=ULTRA),
    case(
        "ultrabert-tied",
        "UltrabertConfig",
        "UltrabertForMaskedLM",
        base=ULTRA,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
    case("ultrabert-base", "UltrabertConfig", "UltrabertModel", base=ULTRA, rms_norm_eps=1e-3),
]

SQUEEZED = {**SMALL, "embedding_size": 32}
SQUEEZES = [
    case("squeezebert", "SqueezeBertConfig", "SqueezeBertForMaskedLM", base=SQUEEZED, inputs=segments),
    case(
        "squeezebert-groups",
        "SqueezeBertConfig",
        "SqueezeBertForMaskedLM",
        base={**SQUEEZED, "q_groups": 1, "k_groups": 2, "v_groups": 8, "post_attention_groups": 2},
        intermediate_groups=8,
        output_groups=1,
        hidden_act="relu",
        **UNTIED,
    ),
    case("squeezebert-base", "SqueezeBertConfig", "SqueezeBertModel", base=SQUEEZED, inputs=segments),
]

MOBILE = {**SMALL, "embedding_size": 12, "intra_bottleneck_size": 24, "num_feedforward_networks": 3}
MOBILES = [
    case("mobilebert", "MobileBertConfig", "MobileBertForMaskedLM", base=MOBILE, inputs=segments, pads=False),
    case(
        "mobilebert-common",
        "MobileBertConfig",
        "MobileBertForMaskedLM",
        base={**MOBILE, "num_feedforward_networks": 1},
        use_bottleneck_attention=True,
        trigram_input=False,
        hidden_act="gelu",
        layer_norm_eps=1e-3,
        **UNTIED,
    ),
    case("mobilebert-own", "MobileBertConfig", "MobileBertForPreTraining", base=MOBILE, pads=False),
    case(
        "mobilebert-base",
        "MobileBertConfig",
        "MobileBertModel",
        base=MOBILE,
        use_bottleneck_attention=True,
        key_query_shared_bottleneck=False,
        pads=False,
    ),
]


CASES = [*ESMS, *ESMCS, *GTES, *FILTERS, *BIRDS, *XLNETS, *NYSTROMS, *CONVS, *XLMS, *ULTRAS, *SQUEEZES, *MOBILES]
