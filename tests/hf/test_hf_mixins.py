"""transformers' own suite for models, ModelTesterMixin, over six of ours.

The suite is in no wheel. TRANSFORMERS_SOURCE names an unpacked source distribution of the installed version (`pip
download transformers==5.24.0 --no-deps --no-binary transformers`; the suite needs `parameterized`). Without it these
tests are skipped. GenerationTesterMixin is in no source distribution: it runs too where TRANSFORMERS_SOURCE has the
repository's file tests/generation/test_utils.py beside an __init__.py. `-m ''` runs those that transformers calls slow
too. The counts are in docs/transformers.md.
"""

import importlib
import os
import sys
import types
import unittest
import warnings
from pathlib import Path

import pytest
import torch

import zoo.hf
from support.tiny_models import LOOPED
from zoo.cache.cached_row import list_slots
from zoo.hf import ZooConfig

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("TRANSFORMERS_SOURCE names no source of transformers", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")


def open_suite():
    """Import the suite, with empty classes in place of parts that the source does not have."""
    sys.path.insert(0, SOURCE)
    for name, classes in (
        ("exporters.test_export", ("ExportTesterMixin", "ExportGenerateTesterMixin")),
        ("generation.test_utils", ("GenerationTesterMixin",)),
    ):
        if not (Path(SOURCE) / "tests" / f"{name.replace('.', '/')}.py").exists():
            sys.modules[f"tests.{name.partition('.')[0]}"] = types.ModuleType(f"tests.{name.partition('.')[0]}")
            sys.modules[f"tests.{name}"] = stub = types.ModuleType(f"tests.{name}")
            vars(stub).update({each: type(each, (), {}) for each in classes})
    return importlib.import_module("tests.test_modeling_common")


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    suite = open_suite()
suite.MODEL_MAPPING_NAMES["zoo"] = "ZooModel"  # a class without a loss
SMALL = ("d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=67")
CAUSAL = (zoo.hf.ZooModel, zoo.hf.ZooForCausalLM)
TASKS = (zoo.hf.ZooForSequenceClassification, zoo.hf.ZooForTokenClassification)
MODELS = {
    "Llama": ("llama-tiny", ("n_layers=2", *SMALL), (*CAUSAL, *TASKS)),
    "Hybrid": ("qwen3-next-tiny", ("n_layers=4", "d_model=48", "vocab_size=67"), CAUSAL),
    "Latent": ("deepseek-tiny", ("n_layers=2", "d_model=64", "vocab_size=67"), CAUSAL),
    "Looped": ("llama-tiny", (*SMALL, *LOOPED), CAUSAL),
    "Encoder": (
        "bert-tiny",
        ("n_layers=2", "d_model=64", "d_ff=128", "vocab_size=67"),
        (zoo.hf.ZooModel, zoo.hf.ZooForMaskedLM, *TASKS),
    ),
    "Pair": ("t5-tiny", ("n_layers=2", "d_model=64", "d_ff=128", "vocab_size=67"), (zoo.hf.ZooForSeq2SeqLM,)),
}
OWN_LAYERS = "looks for transformers' class of layers, and ours recompute by themselves (test_hf_causal compares that)"
LEFT_OUT = {
    "test_gradient_checkpointing_enable_disable": OWN_LAYERS,
    "test_training_gradient_checkpointing": OWN_LAYERS,
    "test_training_gradient_checkpointing_use_reentrant_false": OWN_LAYERS,
    "test_training_gradient_checkpointing_use_reentrant_true": OWN_LAYERS,
    "test_sdpa_can_dispatch_non_composite_models": "asks that sdpa is the default, and ours is zoo's choice",
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": "asks for attention probabilities",
    "test_inherits_generation_mixin": "asks for GenerationMixin among the direct bases, and ours have a base between",
    "test_model_get_set_embeddings": "a tied head reads the table by reference, and is no nn.Linear",
}
"""Tests that no model runs, and why."""

ATTENDS = ("test_eager_", "test_sdpa_", "test_left_padding", "test_flex_attention", "test_custom_4d")
"""Beginnings of the names of tests that ask whether a model has attention, and not for its probabilities."""

LEFT_OUT_OF = {
    "test_num_layers_is_small": ("Hybrid", "Looped"),  # a pattern of four kinds, and a loop around eight layers
    "test_model_base_model_prefix": ("Pair",),  # its head is its decoder's: there is no base without it
    "test_generation_tester_mixin_inheritance": ("Encoder",),  # generates nothing
    # windows and recurrent states take no token back, and transformers refuses an assistant of those
    "test_assisted_decoding_matches_greedy_search_0_random": ("Hybrid", "Looped"),
    "test_assisted_decoding_matches_greedy_search_1_same": ("Hybrid", "Looped"),
    "test_assisted_decoding_sample": ("Hybrid", "Looped"),
}
"""Tests that some models do not run."""


class SuiteModel:
    """What the suite asks of a model: its config, and inputs."""

    batch_size, seq_length, is_training = 3, 7, True
    encoder_seq_length = decoder_seq_length = 7

    def __init__(self, name, overrides):
        self.of = name, overrides
        config = self.get_config()
        self.hidden_size, self.num_hidden_layers = config.hidden_size, config.num_hidden_layers
        self.num_attention_heads, self.vocab_size = config.num_attention_heads, config.vocab_size

    def get_config(self):
        return ZooConfig.of(*self.of, pad_token_id=0, eos_token_id=1, bos_token_id=2)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            given |= {"decoder_input_ids": ids.clone(), "decoder_attention_mask": torch.ones_like(ids)}
        return config, given


def check_cache(self, batch_size, past_key_values, seq_length, config):
    """Check the size of a cache of ours, which has no layers of transformers' form."""
    self.assertIsInstance(past_key_values, zoo.hf.ZooCache)
    self.assertEqual((past_key_values.batch_size, past_key_values.get_seq_length()), (batch_size, seq_length))


def check_equal_caches(self, one, other):
    """Check that two caches of ours hold the same keys, values and states."""
    for mine, theirs in zip(list_held(one), list_held(other), strict=True):
        torch.testing.assert_close(mine, theirs)


def list_held(cache):
    """List the tensors that a cache holds of its rows."""
    store = cache.cache.store
    for row in cache.cache.rows:
        for kind, layer in zip(store.tower.pattern, store.layers, strict=True):
            number = store.group_of.get(kind)
            slots = [] if number is None else list_slots(row.runs(number, row.dropped[number] * store.page, row.length))
            yield from (pool[slots] for pool in layer.tensors.values())
            yield from (state[row.slot] for state in layer.states.values())


def make_case(name):
    model, overrides, classes = MODELS[name]

    def set_up(self):
        self.has_attentions = self._testMethodName.startswith(ATTENDS)
        self.model_tester = SuiteModel(model, overrides)

    def prepare(self, inputs_dict, model_class, return_labels=False):
        """Add labels as the suite does for classes that it knows by name."""
        return_labels = return_labels and model_class is not zoo.hf.ZooModel
        shape = () if model_class is zoo.hf.ZooForSequenceClassification else (self.model_tester.seq_length,)
        labels = torch.zeros((self.model_tester.batch_size, *shape), dtype=torch.long)
        return {**inputs_dict, "labels": labels} if return_labels else dict(inputs_dict)

    body = {"all_model_classes": classes, "setUp": set_up, "_prepare_for_class": prepare}
    body |= {
        "is_encoder_decoder": name == "Pair",
        "test_all_params_have_gradient": name in ("Llama", "Encoder", "Pair"),
    }
    body |= {"_check_past_key_values_for_generate": check_cache, "_check_caches_are_equal": check_equal_caches}
    for test, who in {**dict.fromkeys(LEFT_OUT, MODELS), **LEFT_OUT_OF}.items():
        body |= {test: None} if name in who else {}
    return type(f"Test{name}", (suite.ModelTesterMixin, suite.GenerationTesterMixin, unittest.TestCase), body)


for each in MODELS:
    globals()[f"Test{each}"] = make_case(each)
