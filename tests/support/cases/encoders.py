"""Encoders."""

from support.reference_models import Case

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
UNTIED = {"tie_word_embeddings": False}


def segments(ids):
    return {"token_type_ids": (ids % 3 == 0).long()}


def everywhere(ids):
    """Global tokens: a few, in different places of each row."""
    return {"global_attention_mask": (ids % 9 == 0).long()}


def case(name, config, model, /, base=SMALL, inputs=None, unbind=(), tokens=24, apart=False, **sizes):
    """A case of an encoder, which generates nothing."""
    own = {"inputs": inputs} if inputs else {}
    return Case(name, config, model, {**base, **sizes}, writes=False, unbind=unbind, tokens=tokens, apart=apart, **own)


def berts(name, stem, plain=False, **more):
    """The cases of a family that is BERT but for its names; a plain one has no segments."""
    config, mlm, base = f"{stem}Config", f"{stem}ForMaskedLM", f"{stem}Model"
    inputs = None if plain else segments
    return [
        case(name, config, mlm, inputs=inputs, **more),
        case(f"{name}-untied", config, mlm, inputs=inputs, **more, **UNTIED, hidden_act="gelu_new"),
        case(f"{name}-relu", config, mlm, **more, hidden_act="relu", num_attention_heads=2, layer_norm_eps=1e-3),
        case(f"{name}-base", config, base, inputs=inputs, **more),
    ]


BERTS = [
    *berts("bert", "Bert"),
    *berts("roberta", "Roberta"),
    case("roberta-pad", "RobertaConfig", "RobertaForMaskedLM", pad_token_id=3, type_vocab_size=1),
    *berts("xlm_roberta", "XLMRoberta"),
    *berts("camembert", "Camembert"),
    *berts("data2vec_text", "Data2VecText"),
    *berts("xlm_roberta_xl", "XLMRobertaXL", base={**SMALL, "type_vocab_size": 2}),
    *berts("megatron_bert", "MegatronBert"),
    *berts("ernie", "Ernie"),
    case("ernie-tasks", "ErnieConfig", "ErnieForMaskedLM", inputs=segments, use_task_id=True, task_type_vocab_size=4),
    case("bert-pretraining", "BertConfig", "BertForPreTraining", inputs=segments),
    case("bert-pretraining-untied", "BertConfig", "BertForPreTraining", **UNTIED),
    case("ernie-pretraining", "ErnieConfig", "ErnieForPreTraining", inputs=segments),
    case("megatron_bert-pretraining", "MegatronBertConfig", "MegatronBertForPreTraining", inputs=segments),
    case("splinter-base", "SplinterConfig", "SplinterModel", inputs=segments),
]

NAMED = {**SMALL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
NEWER = [
    *berts("mpnet", "MPNet", base={**SMALL, "max_position_embeddings": 300}, tokens=200, plain=True),
    case("roformer", "RoFormerConfig", "RoFormerForMaskedLM", inputs=segments, unbind=("embed_positions",)),
    case(
        "roformer-factorised",
        "RoFormerConfig",
        "RoFormerForMaskedLM",
        embedding_size=20,
        unbind=("embed_positions",),
        **UNTIED,
    ),
    case(
        "roformer-values",
        "RoFormerConfig",
        "RoFormerForMaskedLM",
        rotary_value=True,
        unbind=("embed_positions",),
        hidden_act="laplace",
    ),
    case("roformer-base", "RoFormerConfig", "RoFormerModel", embedding_size=12, unbind=("embed_positions",)),
    case(
        "rembert",
        "RemBertConfig",
        "RemBertForMaskedLM",
        input_embedding_size=20,
        output_embedding_size=44,
        inputs=segments,
    ),
    case(
        "rembert-tied",
        "RemBertConfig",
        "RemBertForMaskedLM",
        input_embedding_size=32,
        output_embedding_size=32,
        tie_word_embeddings=True,
        hidden_act="relu",
    ),
    case("rembert-base", "RemBertConfig", "RemBertModel", input_embedding_size=12, output_embedding_size=44),
    *berts("nomic_bert", "NomicBert"),
    case("nomic_bert-wide", "NomicBertConfig", "NomicBertForMaskedLM", head_dim=12, rope_parameters=YARN),
    *berts("jina_embeddings_v3", "JinaEmbeddingsV3", base={**SMALL, "type_vocab_size": 2}),
    case("jina_embeddings_v3-yarn", "JinaEmbeddingsV3Config", "JinaEmbeddingsV3Model", rope_parameters=YARN),
    case("eurobert", "EuroBertConfig", "EuroBertForMaskedLM", base=NAMED),
    case(
        "eurobert-biased",
        "EuroBertConfig",
        "EuroBertForMaskedLM",
        base=NAMED,
        mlp_bias=True,
        attention_bias=True,
        head_dim=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters=YARN,
    ),
    case("eurobert-base", "EuroBertConfig", "EuroBertModel", base=NAMED, num_key_value_heads=1, mlp_bias=True),
]

DISTIL = {"vocab_size": 97, "dim": 32, "hidden_dim": 56, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64}
DISTILBERTS = [
    case("distilbert", "DistilBertConfig", "DistilBertForMaskedLM", base=DISTIL),
    case("distilbert-untied", "DistilBertConfig", "DistilBertForMaskedLM", base=DISTIL, **UNTIED, activation="relu"),
    case("distilbert-sines", "DistilBertConfig", "DistilBertForMaskedLM", base=DISTIL, sinusoidal_pos_embds=True),
    case("distilbert-base", "DistilBertConfig", "DistilBertModel", base=DISTIL),
]

FACTORISED = [
    case("electra", "ElectraConfig", "ElectraForMaskedLM", embedding_size=20, inputs=segments),
    case("electra-whole", "ElectraConfig", "ElectraForMaskedLM", embedding_size=32, hidden_act="relu", **UNTIED),
    case("electra-untied", "ElectraConfig", "ElectraForMaskedLM", embedding_size=12, type_vocab_size=4, **UNTIED),
    case("electra-base", "ElectraConfig", "ElectraModel", embedding_size=20),
    case("albert", "AlbertConfig", "AlbertForMaskedLM", embedding_size=20, inputs=segments),
    case(
        "albert-groups",
        "AlbertConfig",
        "AlbertForMaskedLM",
        embedding_size=32,
        num_hidden_layers=5,
        num_hidden_groups=2,
        **UNTIED,
    ),
    case(
        "albert-inner",
        "AlbertConfig",
        "AlbertForMaskedLM",
        embedding_size=20,
        num_hidden_layers=4,
        num_hidden_groups=2,
        inner_group_num=3,
        hidden_act="gelu",
    ),
    case("albert-pretraining", "AlbertConfig", "AlbertForPreTraining", embedding_size=20, inputs=segments),
    case("albert-base", "AlbertConfig", "AlbertModel", embedding_size=20, num_hidden_groups=3, inner_group_num=2),
]

MODERN = {
    **SMALL,
    "num_hidden_layers": 4,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
ROPES = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "sliding_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0},
}
MODERNS = [
    case("modernbert", "ModernBertConfig", "ModernBertForMaskedLM", base=MODERN),
    case(
        "modernbert-biased",
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        base=MODERN,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        classifier_bias=True,
        decoder_bias=False,
        hidden_activation="silu",
        classifier_activation="relu",
        **UNTIED,
    ),
    case("modernbert-untied", "ModernBertConfig", "ModernBertForMaskedLM", base=MODERN, local_attention=5, **UNTIED),
    case(
        "modernbert-types",
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        base=MODERN,
        rope_parameters=ROPES,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
    case(
        "modernbert-every",
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        base=MODERN,
        global_attn_every_n_layers=2,
        global_rope_theta=900.0,
        local_rope_theta=40.0,
    ),
    case(
        "modernbert-full", "ModernBertConfig", "ModernBertForMaskedLM", base=MODERN, layer_types=["full_attention"] * 4
    ),
    case("modernbert-base", "ModernBertConfig", "ModernBertModel", base=MODERN),
]


def debertas(name, stem):
    """What both versions of DeBERTa may be."""
    config, mlm = f"{stem}Config", f"{stem}ForMaskedLM"
    near = {"relative_attention": True, "max_relative_positions": 9, "position_biased_input": False}
    both = {**near, "pos_att_type": ["p2c", "c2p"]}
    return [
        case(name, config, mlm, **both),
        case(
            f"{name}-biased",
            config,
            mlm,
            **{**both, "position_biased_input": True},
            type_vocab_size=2,
            inputs=segments,
            **UNTIED,
        ),
        case(
            f"{name}-far",
            config,
            mlm,
            **{**both, "max_relative_positions": -1, "pos_att_type": "c2p"},
            hidden_act="relu",
        ),
        case(f"{name}-p2c", config, mlm, **{**both, "pos_att_type": ["p2c"]}, legacy=False, num_attention_heads=2),
        case(f"{name}-plain", config, mlm, legacy=False, **UNTIED),
        case(f"{name}-counted", config, mlm, pos_att_type=["c2p", "p2c"], position_biased_input=False),
        case(f"{name}-untyped", config, mlm, **near),
        case(f"{name}-base", config, f"{stem}Model", **both),
    ]


V2 = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
}
DEBERTAS = [
    *debertas("deberta", "Deberta"),
    *debertas("deberta_v2", "DebertaV2"),
    case(
        "deberta_v2-v3",
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        **V2,
        share_att_key=True,
        position_buckets=8,
        legacy=False,
    ),
    case(
        "deberta_v2-xl",
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        **V2,
        share_att_key=True,
        position_buckets=6,
        conv_kernel_size=3,
        conv_act="gelu",
        max_relative_positions=20,
        attention_head_size=8,
    ),
    case(
        "deberta_v2-conv",
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        **V2,
        conv_kernel_size=5,
        conv_groups=4,
        type_vocab_size=2,
    ),
    case("deberta_v2-conv-base", "DebertaV2Config", "DebertaV2Model", conv_kernel_size=3, num_hidden_layers=1),
]

LONG = {**SMALL, "attention_window": 8}
LONGFORMERS = [
    case("longformer", "LongformerConfig", "LongformerForMaskedLM", base=LONG),
    case("longformer-global", "LongformerConfig", "LongformerForMaskedLM", base=LONG, inputs=everywhere, tokens=32),
    case(
        "longformer-layers",
        "LongformerConfig",
        "LongformerForMaskedLM",
        base=LONG,
        attention_window=[4, 16, 8],
        inputs=everywhere,
        hidden_act="relu",
        pad_token_id=2,
        **UNTIED,
    ),
    case("longformer-base", "LongformerConfig", "LongformerModel", base=LONG, inputs=segments),
]

DECODERS = [
    Case("modernbert_decoder", "ModernBertDecoderConfig", "ModernBertDecoderForCausalLM", MODERN),
    Case(
        "modernbert_decoder-untied",
        "ModernBertDecoderConfig",
        "ModernBertDecoderForCausalLM",
        {
            **MODERN,
            **UNTIED,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "decoder_bias": False,
            "local_attention": 11,
            "rope_parameters": ROPES,
        },
    ),
    # A stated sliding window stands in place of half of local_attention.
    Case(
        "modernbert_decoder-window",
        "ModernBertDecoderConfig",
        "ModernBertDecoderForCausalLM",
        {**MODERN, "local_attention": 20, "sliding_window": 4},
    ),
    Case("modernbert_decoder-base", "ModernBertDecoderConfig", "ModernBertDecoderModel", MODERN, writes=False),
]

# An encoder's weights with a causal mask. Where positions count from the padding's id on, the reference generates with
# positions from 0, other than those of its own full forward.
OFFSET = ("roberta", "xlm_roberta", "camembert", "data2vec_text", "xlm_roberta_xl")
CAUSAL = [
    Case(
        f"{first.name}-causal",
        first.config,
        first.config.removesuffix("Config") + ("LMHeadModel" if first.name == "bert" else "ForCausalLM"),
        {**first.sizes, "is_decoder": True},
        unbind=first.unbind,
        writes=first.name not in OFFSET,
    )
    for first in (*BERTS, *NEWER, *FACTORISED)
    if first.name in (*OFFSET, "bert", "megatron_bert", "ernie", "roformer", "rembert", "electra")
]

CASES = [*NEWER, *DECODERS, *BERTS, *DISTILBERTS, *FACTORISED, *MODERNS, *DEBERTAS, *LONGFORMERS, *CAUSAL]
