"""Tiny random multimodal models of transformers, whole: what test_multimodal.py reads the text model of."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from support.cases.blocks_2026 import EMBEDDER, FEWER, GLIMMER, SPARK
from support.cases.convolved_2026 import INKLING
from support.cases.depth_2026 import INKLING2, LOOP
from support.cases.experts import QWEN, SMALL, YARN
from support.cases.gemma import GEMMA4
from support.cases.sparse import DOTS, LARGE4, M3
from support.cases.streams import GLM5, HY4
from support.cases.text_towers import (
    GLM,
    GLM_MOE,
    MOLMO,
    NEAR,
    NEXT,
    NEXT_MOE,
    PADDED,
    QWEN4,
    TEMPERED,
    UNPADDED,
    WIDE,
    mrope,
)

FILE = "model.safetensors"
IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
QWEN_SIGHT = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
NARROW = {**QWEN_SIGHT, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
SIGHT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGHT |= {"image_size": 16, "patch_size": 4}

SIGHT_OF_HY4 = {name: value for name, value in SIGHT.items() if name != "image_size"}

SIGHT_OF_DOTS = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "patch_size": 4}
SIGHT_OF_DOTS |= {"adapter_in_dim": 16, "adapter_out_dim": 32, "num_local_experts": 4}
IDS_OF_DOTS = {"image_token_id": 90, "video_token_id": 91, "audio_token_id": 92}
HEARD = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
HEARD |= {"feature_size": 16, "downsample_hidden_size": 4, "adapter_input_size": 16, "adapter_out_dim": 32}

SEEN = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}

HEARING = {"patch_sizes": [4], "depths": [1], "num_hidden_layers": 1}


@dataclass(frozen=True, eq=False)
class Whole:
    """One multimodal model: its config class and class, what is set on its text model, its vision tower and itself."""

    name: str
    config: str
    model: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    decoder: str = ""  # the part that reads text, where the whole class cannot be called
    published: tuple[str, str] = ("", "")  # names as published, where transformers writes others: what, and by what
    writes: bool = True

    def reference(self) -> Any:
        """Build the model in eval mode, every parameter random."""
        sizes = copy.deepcopy({"text_config": dict(self.text), "vision_config": dict(self.vision), **self.own})
        config = getattr(transformers, self.config)(**sizes)
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    drawn = torch.randn(tensor.shape, generator=generator) * 0.15
                    tensor.copy_(drawn + 1 if tensor.ndim == 1 and name.endswith("weight") else drawn)
        return model


@dataclass
class Pair:
    """A multimodal model, the folder it was saved to, and the text model that zoo reads there."""

    case: Whole
    reference: Any
    folder: Path
    ours: Any


@functools.cache
def pair(case: Whole) -> Pair:
    """Make the two models of a case, once."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-whole-"))
    reference = case.reference()
    reference.save_pretrained(folder)
    if case.published[0]:
        named = {name.replace(*case.published): each for name, each in load_file(folder / FILE).items()}
        save_file(named, folder / FILE, {"format": "pt"})
    part = reference.get_submodule(case.decoder) if case.decoder else reference
    return Pair(case, part, folder, zoo.load(folder))


WHOLE = [
    Whole(
        "gemma3",
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {**SMALL, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        {**SIGHT, "model_type": "siglip_vision_model"},
        {"mm_tokens_per_image": 4, "image_token_index": 90},
    ),
    Whole(
        "gemma4",
        "Gemma4Config",
        "Gemma4ForConditionalGeneration",
        GEMMA4,
        {**SIGHT, "head_dim": 8, "num_key_value_heads": 2, "model_type": "gemma4_vision"},
        {"image_token_id": 90, "video_token_id": 91, "audio_token_id": 92, "audio_config": None},
    ),
    Whole(
        "mistral3",
        "Mistral3Config",
        "Mistral3ForConditionalGeneration",
        {**WIDE, "model_type": "mistral", "sliding_window": 5},
        {**SIGHT, "model_type": "pixtral", "head_dim": 8},
        {"image_token_index": 90, "tie_word_embeddings": False},
    ),
    Whole(
        "ministral3",
        "Mistral3Config",
        "Mistral3ForConditionalGeneration",
        {**WIDE, "model_type": "ministral3", "rope_parameters": TEMPERED},
        {**SIGHT, "model_type": "pixtral", "head_dim": 8},
        {"image_token_index": 90, "tie_word_embeddings": True},
    ),
    Whole(
        "llama4",
        "Llama4Config",
        "Llama4ForConditionalGeneration",
        {**WIDE, "num_hidden_layers": 4, "intermediate_size_mlp": 48, "num_local_experts": 4, "attention_chunk_size": 7}
        | {"interleave_moe_layer_step": 2, "pad_token_id": None},
        {**SIGHT, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        {"image_token_index": 90},
        decoder="language_model",  # transformers 5.24: the whole class asks its text model for the outputs of images
    ),
    Whole(
        "qwen2_vl",
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {**SMALL, **mrope(2, 1, 1)},
        {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 4, "hidden_size": 32, "temporal_patch_size": 1},
        IDS,
    ),
    Whole(
        "qwen2_5_vl", "Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration", {**SMALL, **mrope(1, 2, 1)}, NARROW, IDS
    ),
    Whole(
        "qwen3_vl",
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {**WIDE, **mrope(4, 2, 2, mrope_interleaved=True)},
        {**NARROW, "deepstack_visual_indexes": [0]},
        IDS,
    ),
    Whole(
        "qwen3_vl_moe",
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGeneration",
        {**QWEN, "head_dim": 16, **mrope(4, 2, 2)},
        {**NARROW, "deepstack_visual_indexes": [0]},
        {**IDS, "tie_word_embeddings": True},
    ),
    Whole(
        "glm5_next",
        "Glm5NextConfig",
        "Glm5NextForConditionalGeneration",
        GLM5,
        {**NARROW, "image_size": 16, "projection_intermediate_size": 24},
        {"image_token_id": 90, "video_token_id": 91},
    ),
    Whole(
        "hy_v4_vl",
        "HYV4VLConfig",
        "HYV4VLForConditionalGeneration",
        {**HY4, **mrope(1, 1, 1)},
        {**SIGHT_OF_HY4, "patch_size": 4, "max_image_size": 16, "out_hidden_size": 32},
        {"image_token_id": 90, "video_token_id": 91},
    ),
    Whole(
        "inkling",
        "InklingConfig",
        "InklingForConditionalGeneration",
        {**INKLING, "unpadded_vocab_size": 95},
        {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 4},
        {"image_token_id": 90, "audio_token_id": 91, "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 8}},
    ),
    Whole(
        "inkling2",
        "Inkling2Config",
        "Inkling2ForConditionalGeneration",
        {**INKLING2, "unpadded_vocab_size": 95},
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "text_hidden_size": 32},
        {"image_token_id": 90},
    ),
    Whole(
        "inkling2_loop",
        "Inkling2LoopConfig",
        "Inkling2LoopForConditionalGeneration",
        {**LOOP, "unpadded_vocab_size": 95},
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "text_hidden_size": 32},
        {"image_token_id": 90},
    ),
    Whole("qwen3_5", "Qwen3_5Config", "Qwen3_5ForConditionalGeneration", NEXT, NARROW, IDS),
    Whole("qwen3_5_moe", "Qwen3_5MoeConfig", "Qwen3_5MoeForConditionalGeneration", NEXT_MOE, NARROW, IDS),
    Whole("qwen4_exp", "Qwen4ExpConfig", "Qwen4ExpForConditionalGeneration", QWEN4, NARROW, IDS),
    Whole(
        "glm4v",
        "Glm4vConfig",
        "Glm4vForConditionalGeneration",
        {**GLM, **mrope(2, 1, 1)},
        {**NARROW, "image_size": 16},
        IDS,
    ),
    Whole(
        "glm4v_moe",
        "Glm4vMoeConfig",
        "Glm4vMoeForConditionalGeneration",
        {**GLM_MOE, **mrope(1, 1, 0, partial_rotary_factor=0.5)},
        {**NARROW, "image_size": 16},
        IDS,
    ),
    Whole(
        "glm_ocr",
        "GlmOcrConfig",
        "GlmOcrForConditionalGeneration",
        {**GLM, **mrope(2, 1, 1)},
        {**NARROW, "image_size": 16},
        IDS,
    ),
    Whole(
        "glm_image",
        "GlmImageConfig",
        "GlmImageModel",
        {**PADDED, **mrope(2, 1, 1)},
        {"depth": 1, "hidden_size": 16, "num_heads": 2, "patch_size": 4, "image_size": 16, "intermediate_size": 24},
        {"image_token_id": 90, "vq_config": {"embed_dim": 8, "num_embeddings": 12, "latent_channels": 8}},
        writes=False,
    ),
    Whole(
        "aria",
        "AriaConfig",
        "AriaForConditionalGeneration",
        {**SMALL, "moe_num_experts": 4},
        {**SIGHT, "model_type": "idefics3_vision"},
        {"image_token_index": 90, "projector_patch_to_query_dict": {16: 4}},
    ),
    Whole(
        "hunyuan_vl",
        "HunYuanVLConfig",
        "HunYuanVLForConditionalGeneration",
        {**WIDE, **mrope(2, 2, 2, 2)},
        {**SIGHT, "out_hidden_size": 32, "text_hidden_size": 32},
        {"image_token_id": 90},
    ),
    Whole(
        "granite_docling",
        "GraniteDoclingConfig",
        "GraniteDoclingForConditionalGeneration",
        UNPADDED,
        {**SIGHT, "out_hidden_size": 32},
        {"image_token_id": 90, "pad_token_id": None},
    ),
    Whole(
        "cohere_compass",
        "CohereCompassConfig",
        "CohereCompassForConditionalGeneration",
        {
            **SMALL,
            "num_hidden_layers": 3,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": NEAR, "full_attention": None},
        },
        {**NARROW, "deepstack_visual_indexes": [0]},
        IDS,
    ),
    Whole(
        "cosmos3_edge",
        "Cosmos3EdgeConfig",
        "Cosmos3EdgeForConditionalGeneration",
        {**WIDE, **mrope(4, 2, 2)},
        {**SIGHT},
        IDS,
    ),
    Whole(
        "kimi_k25",
        "Kimi_K25Config",
        "Kimi_K25ForConditionalGeneration",
        {
            **UNPADDED,
            "model_type": "deepseek_v3",
            "q_lora_rank": 12,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 20,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
        {**SIGHT},
        IDS,
        published=("language_model.model.blocks.", "language_model.model.layers."),
    ),
    Whole(
        "molmo2",
        "Molmo2Config",
        "Molmo2ForConditionalGeneration",
        {**MOLMO, "rope_scaling_layers": [0, 2], "rope_parameters": YARN},
        {**SIGHT, "image_size": [16, 16], "num_key_value_heads": 2, "head_dim": 8},
        {"adapter_config": {**SEEN, "head_dim": 8, "vision_feature_layer": [0], "text_hidden_size": 32}},
    ),
    Whole(
        "muse_glimmer",
        "MuseGlimmerConfig",
        "MuseGlimmerForConditionalGeneration",
        GLIMMER,
        {**SIGHT, "patch_size": 4},
        {**IDS, "out_hidden_size": 64, "projector_hidden_size": 24},
    ),
    Whole(
        "embedding_gemma2",
        "EmbeddingGemma2Config",
        "EmbeddingGemma2Model",
        EMBEDDER,
        {**SIGHT, "head_dim": 8, "num_key_value_heads": 2, "model_type": "gemma4_vision"},
        {"image_token_id": 90, "video_token_id": 91, "audio_token_id": 92, "audio_config": None},
        writes=False,
    ),
    Whole(
        "muse_spark",
        "MuseSparkConfig",
        "MuseSparkForConditionalGeneration",
        SPARK,
        {**SIGHT, "patch_size": 4},
        {**IDS, "audio_token_id": 94, "out_hidden_size": 64, "projector_hidden_size": 24}
        | {"audio_config": {**HEARING, "hidden_sizes": [8], "out_hidden_size": 32}},
    ),
    Whole(
        "mistral_large4",
        "MistralLarge4Config",
        "MistralLarge4ForConditionalGeneration",
        LARGE4,
        {**SIGHT, "model_type": "pixtral", "head_dim": 8},
        {"image_token_index": 90},
    ),
    Whole(
        "dots3_note",
        "Dots3NoteConfig",
        "Dots3NoteForConditionalGeneration",
        DOTS,
        {**SIGHT_OF_DOTS, "num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"], "moe_intermediate_size": 12},
        {**IDS_OF_DOTS, "audio_config": HEARD},
    ),
    Whole(
        "minimax_m3_vl",
        "MiniMaxM3VLConfig",
        "MiniMaxM3SparseForConditionalGeneration",
        M3,
        {**SIGHT, "patch_size": 4},
        {"image_token_id": 90, "image_token_index": 90, "video_token_id": 91, "video_token_index": 91},
    ),
    Whole(
        "apertus1p5",
        "Apertus1p5Config",
        "Apertus1p5ForConditionalGeneration",
        FEWER,
        {"codebook_size": 8, "embed_dim": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1]}
        | {"num_res_blocks": 1, "attn_resolutions": [], "resolution": 8},
        {"image_token_id": 72, "audio_token_id": 73, "image_token_offset": 76, "audio_token_offset": 84}
        | {"audio_config": {"model_type": "wavtokenizer_encoder", "codebook_size": 8}},
    ),
]
