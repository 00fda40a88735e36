"""A model of the hub is read by its name as the folder that it has there, from a hub on loopback."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

import zoo
from support.local_hub import LocalHub, name_commit
from support.reference_folders import edit, folder, run
from support.tiny_runs import write_corpus
from support.tiny_tokenizers import byte_level
from zoo import model_hub
from zoo.checkpoint.finding import find
from zoo.errors import CheckpointError


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder as published ones are: config.json, tokenizer, weights, and files that are not read."""
    made = folder(tmp_path_factory.mktemp("published"), vocab_size=280)
    byte_level().save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"eos_token": "e"}))
    for folder_of_files in ("original", "1_Pooling"):
        (made / folder_of_files).mkdir()
    (made / "1_Pooling/config.json").write_text("{}")
    for unread in ("README.md", "modeling_own.py", "consolidated.00.pth", "original/params.json"):
        (made / unread).write_text("not read")
    return made


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A hub with the model Org/tiny, an empty cache, and an empty working folder."""
    shorter = edit(shutil.copytree(published, tmp_path / "shorter"), num_hidden_layers=1)
    revisions = {"main": published, "v1": shorter}
    with LocalHub({"Org/tiny": revisions, "Org/closed": revisions}, gated={"Org/closed"}).serve() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield hub
        forget()


def forget() -> None:
    """Forget what this process has looked up, as a new one would."""
    model_hub.download.cache_clear()
    model_hub._commits.clear()


def go_offline(monkeypatch) -> None:
    forget()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_price_downloads_the_config_alone(hub, published):
    assert zoo.stats("Org/tiny") == zoo.stats(published / "config.json")
    assert hub.seen == ["config.json"]


def test_a_revision_is_the_model_that_it_was(hub):
    assert zoo.compose.load("Org/tiny@v1").n_layers == 1
    assert zoo.compose.load(f"Org/tiny@{name_commit('Org/tiny', 'v1')}").n_layers == 1
    assert zoo.compose.load("Org/tiny", ["n_layers=3"]).n_layers == 3


def test_a_checkpoint_is_its_weights_and_its_tokenizer_and_nothing_else(hub, published, capsys):
    code, text, _ = run(
        capsys, "generate", "--checkpoint", "Org/tiny", "--prompt", "hi", "--max-new-tokens", 4, "--seed", 1
    )
    local = run(capsys, "generate", "--checkpoint", published, "--prompt", "hi", "--max-new-tokens", 4, "--seed", 1)[1]
    assert (code, text) == (0, local)
    needed = [
        "1_Pooling/config.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(hub.seen) == needed


def test_weights_in_shards_are_those_of_their_index(hub, published, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(published)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    shutil.copy(published / "model.safetensors", tmp_path / "sharded/model-fp16.safetensors")
    hub.repos["Org/sharded"] = {"main": tmp_path / "sharded"}
    loaded = zoo.load("Org/sharded", device="cpu")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits, atol=1e-5)
    assert "model-fp16.safetensors" not in hub.seen and len(hub.seen) > 4


def test_a_run_begins_with_the_weights_of_the_hub(hub, published, tmp_path):
    (tmp_path / "texts").mkdir()
    data = [f"data.path={write_corpus(tmp_path / 'texts')}", "data=text", "seq_len=16", "batch_size=1", "steps=1"]
    held = zoo.train(overrides=[*data, "weights=Org/tiny", "lora={rank: 2, on: [attention]}"]).model.state_dict()
    begun = zoo.load(published, device="cpu").state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in begun.items())  # beside the adapters


def test_an_exported_adapter_names_its_base_as_the_hub_does_and_finds_it_in_the_cache(
    hub, published, tmp_path, capsys, monkeypatch
):
    (tmp_path / "texts").mkdir()
    data = [f"data.path={write_corpus(tmp_path / 'texts')}", "data=text", "seq_len=16", "batch_size=1", "steps=1"]
    code = run(capsys, "train", *data, "weights=Org/tiny", "lora={rank: 2, on: [attention]}", "hydra.run.dir=run")[0]
    assert code == 0 and run(capsys, "convert", "run", "adapter", "--to", "peft")[0] == 0
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("Org/tiny", name_commit("Org/tiny", "main"))
    go_offline(monkeypatch)
    merged, trained = (zoo.load(each, device="cpu").state_dict() for each in ("adapter", "run"))
    assert all(torch.equal(merged[name], tensor) for name, tensor in trained.items())
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**config, "revision": "../../refs/main"}))
    with pytest.raises(CheckpointError, match=r"'Org/tiny' is no folder here \(`hf download Org/tiny`\)"):
        zoo.load("adapter", device="cpu")


def test_a_folder_here_is_read_before_the_hub(hub, published, tmp_path):
    edit(shutil.copytree(published, tmp_path / "Org/tiny"), num_hidden_layers=1)
    assert zoo.compose.load("Org/tiny").n_layers == 1
    assert find("Org/tiny") == Path("Org/tiny")
    with pytest.raises(CheckpointError, match=r"Org/closed: no such folder"):
        find("Org/closed")
    assert hub.seen == []


def test_what_the_cache_has_needs_no_network(hub, published, monkeypatch):
    priced, weights = zoo.stats("Org/tiny@v1"), find("Org/tiny")
    go_offline(monkeypatch)
    hub.repos.clear()
    assert zoo.stats("Org/tiny@v1") == priced and find("Org/tiny") == weights


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Org/none", "is no file or folder here, and no model of the hub that this account may read"),
        ("Org/tiny@v9", "has no revision v9"),
        ("Org/closed", "is gated, and this account may not read it .*hf auth login"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line_with_a_cure(hub, capsys, name, said):
    for words in (["stats", name], ["generate", "--checkpoint", name, "--prompt", "hi"]):
        code, _, error = run(capsys, *words)
        assert code == 2 and error.count("\n") == 1
        with pytest.raises(CheckpointError, match=said):
            find(name)


def test_without_a_network_the_line_names_the_model_and_the_cure(hub, monkeypatch):
    zoo.stats("Org/tiny")
    go_offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r"Org/closed: .* the hub cannot be reached.*`hf download Org/closed`"):
        zoo.stats("Org/closed")
    with pytest.raises(CheckpointError, match=r"Org/tiny: .* the hub cannot be reached, and its cache lacks files"):
        find("Org/tiny")  # its config alone is there


def test_without_a_network_a_packaged_model_of_the_name_is_offered(hub, monkeypatch):
    go_offline(monkeypatch)
    with pytest.raises(CheckpointError, match=r"path of a folder or config.json\); qwen3-8b, .* is packaged"):
        zoo.stats("Qwen/Qwen3-8B")


def test_without_the_package_the_line_says_what_to_install(hub, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"Org/tiny: no such file or folder .*pip install 'transformer-zoo\[hf\]'"
    ):
        zoo.stats("Org/tiny")


def test_a_gguf_file_is_read_where_it_is_the_only_one(hub, tmp_path):
    for names in (["a.gguf"], ["a.gguf", "b.gguf"], ["weights.npz"]):
        place = tmp_path / f"with-{len(names)}-{names[0]}"
        place.mkdir()
        for name in names:
            (place / name).write_bytes(b"GGUF")
        hub.repos[f"Org/{place.name}X"] = {"main": place}
    assert model_hub.locate("Org/with-1-a.ggufX").read_bytes() == b"GGUF"
    with pytest.raises(CheckpointError, match=r"has several GGUF files: a.gguf, b.gguf .*`hf download Org/with-2-a"):
        zoo.stats("Org/with-2-a.ggufX")
    with pytest.raises(CheckpointError, match=r"has no config.json and no GGUF file"):
        zoo.stats("Org/with-1-weights.npzX")


@pytest.mark.parametrize("path", ["runs/a.yaml", "./Org/tiny", "/Org/tiny", "~/tiny", "a/b/c", "Org/tiny.gguf", "tiny"])
def test_what_can_be_no_name_is_a_path(path):
    assert not model_hub.is_hub_name(path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_the_hub_is_laid_over_its_base_here(hub, published, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(published)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(published)
    adapted.save_pretrained(tmp_path / "adapter")
    hub.repos["Org/adapter"] = {"main": tmp_path / "adapter"}
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(zoo.load("Org/adapter", device="cpu")(ids).logits, adapted(ids).logits, atol=1e-5)
    assert sorted(hub.seen) == ["adapter_config.json", "adapter_model.safetensors"]
    assert zoo.stats("Org/adapter")["params"]["total"] == zoo.stats(published)["params"]["total"]
