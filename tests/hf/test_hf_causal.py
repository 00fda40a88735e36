"""Decoders as models of transformers: beside transformers' own Llama with the same weights, beside zoo's own passes and
beside formulas."""

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import zoo
import zoo.hf
from support.tiny_models import LOOPED
from zoo.cache.cache import Cache
from zoo.errors import ConfigError
from zoo.hf import ZooConfig, ZooForCausalLM

EXACT = {"atol": 2e-5, "rtol": 2e-5}
LENGTHS = (9, 5, 7)
SIZE = ("n_layers=3", "d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=67")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' Llama and ours, of the same random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=61, num_key_value_heads=2, pad_token_id=0, **sizes)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    ours = zoo.hf.load(folder)
    assert type(ours) is ZooForCausalLM
    return theirs, ours


def make(name, overrides=(), **fields):
    """Make a random model of ours in eval mode, and its twin built by zoo."""
    model = AutoModelForCausalLM.from_config(ZooConfig.of(name, overrides, **fields)).eval()
    twin = zoo.build(model.spec)
    twin.load_state_dict(model.state_dict())
    return model, twin.eval()


def batch(vocab=61, left=True):
    """Token ids [3, 9] and a mask, with padding on one side."""
    ids = torch.randint(1, vocab, (len(LENGTHS), max(LENGTHS)))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, max(LENGTHS) - length :] = 1
    if not left:
        mask = mask.flip(1)
    return ids * mask, mask


@pytest.mark.parametrize("left", (True, False))
def test_logits_hidden_states_and_loss_equal_those_of_llama(pair, left):
    ours = pair[1]
    ids, mask = batch(left=left)
    labels = ids.masked_fill(mask == 0, -100)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # transformers' own, counted without the mask, are others
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
    wanted, found = (model(**given, output_hidden_states=True) for model in pair)
    real = mask.bool()
    torch.testing.assert_close(found.logits[real], wanted.logits[real], **EXACT)
    torch.testing.assert_close(found.loss, wanted.loss, **EXACT)
    assert len(found.hidden_states) == len(wanted.hidden_states) == 3
    for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(a[real], b[real], **EXACT)
    last = ours(ids, mask, logits_to_keep=2)
    torch.testing.assert_close(last.logits, found.logits[:, -2:])


@pytest.mark.parametrize(
    "how", ({}, {"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "num_return_sequences": 2})
)
def test_generated_tokens_equal_those_of_llama(pair, how):
    ids, mask = batch()
    made = []
    for model in pair:
        torch.manual_seed(1)
        options = {"do_sample": False, **how, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 3}
        made.append(model.generate(ids, attention_mask=mask, **options))
    assert torch.equal(*made)


def test_loss_is_the_formula_of_shifted_cross_entropy(pair):
    _, ours = pair
    ids, _ = batch()
    out = ours(ids, labels=ids, num_items_in_batch=torch.tensor(7))
    wanted = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / 7
    torch.testing.assert_close(out.loss, wanted)


OWN = {
    "experts beside a delta rule": ("qwen3-next-tiny", ("n_layers=4", "vocab_size=61")),
    "latent attention": ("deepseek-tiny", ("vocab_size=61",)),
    "windows": ("llama-tiny", (*SIZE, "attention=sliding", "window=4")),
    "looped": ("llama-tiny", (*SIZE[1:], *LOOPED)),
    "learned positions": ("gpt-tiny", ("vocab_size=61",)),
}


OFFLOADED = {name: OWN[name] for name in ("experts beside a delta rule", "latent attention")}
OFFLOADED["a tied head"] = ("llama-tiny", ("vocab_size=61", "head={kind: lm, tied: true}"))


@pytest.mark.parametrize("name", OWN)
def test_padded_rows_are_generated_as_zoo_generates_each_alone(name):
    model, twin = make(*OWN[name])
    ids, mask = batch()
    made = model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
    again = model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, use_cache=False)
    assert torch.equal(made, again)
    for row, length in enumerate(LENGTHS):
        alone = zoo.generate(twin, ids[row : row + 1, -length:], max_new_tokens=9)
        assert torch.equal(alone[0], made[row, -length - 9 :])


@pytest.mark.parametrize("name", OWN)
def test_rows_that_are_read_by_page_are_the_same(name, monkeypatch):
    """As on a GPU, where a store is read by page table."""
    model, _ = make(*OWN[name])
    ids, mask = batch()
    how = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "num_beams": 2}
    wanted = model.generate(ids, **how)
    allocate = Cache.allocate
    monkeypatch.setattr(Cache, "allocate", lambda *given, **options: allocate(*given, **{**options, "paged": True}))
    assert torch.equal(model.generate(ids, **how), wanted)


@pytest.mark.parametrize("name", OWN)
def test_a_cache_is_extended_by_several_padded_columns_and_grows(name):
    model, _ = make(*OWN[name])
    ids, mask = batch()
    more = torch.randint(1, 61, (3, 4))
    cache = zoo.hf.ZooCache(model, capacity=5)
    whole, ones = torch.cat((ids, more), 1), torch.cat((mask, torch.ones_like(more)), 1)
    first = model(ids, mask, past_key_values=cache).logits
    second = model(more, ones, past_key_values=cache).logits
    wanted = model(whole, ones).logits
    torch.testing.assert_close(first[mask.bool()], wanted[:, :9][mask.bool()], **EXACT)
    torch.testing.assert_close(second, wanted[:, 9:], **EXACT)


def test_an_assistant_proposes_tokens_of_a_model_that_can_take_them_back():
    model, _ = make("llama-tiny", SIZE)
    ids = torch.randint(1, 61, (1, 9))
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3), wanted)
    recurrent, _ = make(*OWN["experts beside a delta rule"])
    with pytest.raises(ValueError, match="not supported with stateful models"):
        recurrent.generate(ids, max_new_tokens=3, prompt_lookup_num_tokens=3)


def test_packed_documents_are_read_from_positions():
    model, twin = make("llama-tiny", SIZE)
    ids = torch.randint(1, 61, (1, 9))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    wanted = torch.cat([twin(each).logits for each in ids.split((4, 3, 2), 1)], 1)
    torch.testing.assert_close(model(ids, position_ids=positions).logits, wanted, **EXACT)
    with pytest.raises(ValueError, match="position_ids: each document's are 0, 1, 2"):
        model(ids, position_ids=positions + 1)


@pytest.mark.parametrize("name", OWN)
def test_a_saved_model_is_read_by_transformers_and_by_zoo(name, tmp_path):
    model, twin = make(*OWN[name], eos_token_id=3)
    model.save_pretrained(tmp_path, max_shard_size="50KB")  # in several files
    ids, _ = batch()
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is ZooForCausalLM and AutoConfig.from_pretrained(tmp_path).spec == twin.spec
    assert read.generation_config.eos_token_id == 3
    assert set(read.state_dict()) == set(twin.state_dict())
    for other in (read, zoo.load(tmp_path)):
        for key, value in twin.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)
    torch.testing.assert_close(read(ids).logits, twin(ids).logits, **EXACT)


def test_half_precision_is_kept(tmp_path):
    model, _ = make("llama-tiny", SIZE)
    model.bfloat16().save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_checkpointed_gradients_are_bit_equal():
    model, twin = make("mixtral-tiny", ("vocab_size=61", "n_layers=2"))
    ids, mask = batch()
    model.train()
    losses = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.zero_grad()
        out = model(ids, mask, labels=ids)
        out.loss.backward()
        losses.append((out.loss.detach(), [each.grad.clone() for each in model.parameters()]))
    (first, grads), (second, again) = losses
    assert torch.equal(first, second) and all(map(torch.equal, grads, again))
    plain = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    twin.train()
    torch.testing.assert_close(first - plain, sum(twin(ids, mask).losses.values()), **EXACT)


def test_the_trainer_takes_the_steps_of_a_loop_by_hand(tmp_path):
    model, twin = make("llama-tiny", SIZE)
    rows = [{"input_ids": torch.randint(1, 61, (8,))} for _ in range(6)]
    for row in rows:
        row["labels"] = row["input_ids"]
    how = {"per_device_train_batch_size": 2, "max_steps": 3, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    how |= {"max_grad_norm": 0.0, "optim": "sgd", "report_to": [], "save_strategy": "no", "use_cpu": True}
    arguments = transformers.TrainingArguments(str(tmp_path), **how, disable_tqdm=True, dataloader_pin_memory=False)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    twin.train()
    for start in (0, 2, 4):
        ids = torch.stack([row["input_ids"] for row in rows[start : start + 2]])
        F.cross_entropy(twin(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, **EXACT)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
def test_adapters_of_peft_train_and_merge(tmp_path):
    peft = pytest.importorskip("peft")
    model, twin = make("mixtral-tiny", ("vocab_size=61", "n_layers=2"))
    ids, _ = batch()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.train()
    adapted(ids, labels=ids).loss.backward()
    trained = {name for name, each in adapted.named_parameters() if each.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert all(each.grad is not None for each in adapted.parameters() if each.requires_grad)
    assert not any("head" in name for name in trained)
    adapted.eval().save_pretrained(tmp_path)
    wanted = adapted(ids).logits
    again = peft.PeftModel.from_pretrained(make_again(twin), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, wanted, **EXACT)
    merged = adapted.merge_and_unload()
    assert type(merged) is ZooForCausalLM
    torch.testing.assert_close(merged(ids).logits, wanted, **EXACT)
    assert not torch.allclose(wanted, twin(ids).logits, atol=1e-3)


def make_again(twin):
    model = zoo.build(twin.spec)
    model.load_state_dict(twin.state_dict())
    return zoo.hf.wrap(model.eval())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_that_a_forward_would_pass_by_is_refused():
    peft = pytest.importorskip("peft")
    model, _ = make(*OWN["latent attention"])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["k_b"]))
    with pytest.raises(ConfigError, match=r"attention\.k_b: is also read as a plain weight"):
        adapted.train()


@pytest.mark.parametrize("tied", ("true", "false"))
def test_a_vocabulary_grows_and_shrinks(tied, tmp_path):
    model, twin = make("llama-tiny", (*SIZE, f"head.tied={tied}"))
    ids = torch.randint(1, 60, (2, 9))
    table = twin.get_submodule("embedding.tokens").weight
    assert model.resize_token_embeddings(70, pad_to_multiple_of=8).weight.shape == (72, 32)
    assert model.config.vocab_size == model.spec.vocab_size == 72
    torch.testing.assert_close(model(ids).logits[..., :67], twin(ids).logits, **EXACT)
    torch.testing.assert_close(model.get_input_embeddings().weight[67:], table.mean(0).expand(5, -1))
    model(torch.full((1, 3), 71), labels=torch.full((1, 3), 71)).loss.backward()
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(read(ids).logits, model(ids).logits, **EXACT)
    model.resize_token_embeddings(60)
    torch.testing.assert_close(model(ids[:, :1]).logits, twin(ids[:, :1]).logits[..., :60], **EXACT)


def test_a_longer_context_gives_a_learned_table_more_rows():
    config = ZooConfig.of("gpt-tiny", SIZE[:3])
    config.max_position_embeddings = 640
    assert config.max_position_embeddings == config.spec.max_seq_len == 640
    assert AutoModelForCausalLM.from_config(config)(torch.ones(1, 600, dtype=torch.long)).logits.shape[1] == 600


def test_a_shared_model_shares_its_weights():
    built = zoo.build("llama-tiny", SIZE)
    model = zoo.hf.wrap(built, eos_token_id=5)
    ids, _ = batch()
    torch.testing.assert_close(model(ids).logits, built(ids).logits)
    with torch.no_grad():
        built.get_submodule("embedding.tokens").weight.add_(0.1)
    torch.testing.assert_close(model(ids).logits, built(ids).logits)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 5


@pytest.mark.filterwarnings("ignore:.*low_cpu_mem_usage")
@pytest.mark.parametrize(
    "how", ({"device_map": "cpu"}, {"device_map": "auto", "max_memory": {"cpu": "1GB"}}, {"low_cpu_mem_usage": True})
)
@pytest.mark.parametrize("name", OWN)
def test_a_device_map_of_one_device_changes_no_weight(name, how, tmp_path):
    model, _ = make(*OWN[name])
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, **how)
    ids, mask = batch()
    assert torch.equal(opened(ids, mask).logits, model(ids, mask).logits)
    held = model.state_dict()
    assert (
        all(torch.equal(each, held[key]) for key, each in opened.state_dict().items()) and opened.device.type == "cpu"
    )


@pytest.mark.parametrize("where", ("layers", "all", "by memory"))
@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_weights_compute_what_they_compute_in_memory(name, where, tmp_path):
    model, _ = make(*OFFLOADED[name])
    model.save_pretrained(tmp_path)
    layers = {part: "disk" if part == "blocks" else "cpu" for part, _ in model.named_children()}
    how = {"layers": layers, "all": {"": "disk"}, "by memory": "auto"}[where]
    most = {"cpu": sum(each.nbytes for each in model.parameters()) // 2}
    options = {"offload_folder": tmp_path / "off", "max_memory": most if where == "by memory" else None}
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=how, **options)
    ids, mask = batch()
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    away = [key for key, each in opened.named_parameters() if each.is_meta]
    assert torch.equal(opened(ids, mask).logits, model(ids, mask).logits)
    assert torch.equal(opened.generate(ids, **options), model.generate(ids, **options))
    assert away == [key for key, each in opened.named_parameters() if each.is_meta]
    assert len(away) >= sum(1 for key, _ in model.named_parameters() if "blocks.1" in key) > 0


def test_a_device_map_with_several_devices_that_compute_is_refused(tmp_path):
    make("llama-tiny", SIZE)[0].save_pretrained(tmp_path)
    spread = {"embedding": "cpu", "position": "cpu", "blocks": "meta", "norm": "cuda:1", "head": "disk"}
    with pytest.raises(
        ConfigError, match="device_map: computes on cuda:1, meta, and the masks and positions of a pass"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path, device_map=spread, offload_folder=tmp_path / "off")


def test_what_a_model_of_ours_does_not_take_is_refused():
    model, _ = make("llama-tiny", SIZE)
    ids, mask = batch()
    with pytest.raises(TypeError, match="head_mask: no model of zoo takes"):
        model(ids, head_mask=torch.zeros(1))
    with pytest.raises(TypeError, match="is a DynamicCache"):
        model(ids, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="attention_mask: has 4 dimensions"):
        model(ids, mask[:, None, None])
    with pytest.raises(ConfigError, match="prefix_lm: transformers does not tell a model how long"):
        AutoModelForCausalLM.from_config(ZooConfig.of("llama-tiny", ["prefix_lm=true"]))
    with pytest.raises(ValueError, match="token_type_ids: rows of a cache have none"):
        model(ids, token_type_ids=ids, use_cache=True)
    with pytest.raises(ConfigError, match="kind: is 'encoder'"):
        AutoModelForCausalLM.from_config(ZooConfig.of("bert-tiny"))
    with pytest.raises(ConfigError, match="cache_implementation: is 'static'"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
