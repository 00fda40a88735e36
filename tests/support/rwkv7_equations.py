"""RWKV-7 by its paper's equations, and a folder of it as flash-linear-attention writes one."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import zoo

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "head_dim": 8, "norm_eps": 1e-5}


RANKS = {"decay_low_rank_dim": 5, "gate_low_rank_dim": 6, "a_low_rank_dim": 3, "v_low_rank_dim": 4}


CONFIG = {"model_type": "rwkv7", "architectures": ["RWKV7ForCausalLM"], **SIZES, **RANKS}


D, HEADS, WIDTH = 32, 4, 8


def make_tensors(config):
    """A random model's tensors, by the names that published folders have."""
    draw = torch.Generator().manual_seed(5)

    def rand(*shape):
        return torch.randn(shape, generator=draw) * (shape[-1] ** -0.5 if len(shape) > 1 and shape[0] > 1 else 0.5)

    found = {"model.embeddings.weight": rand(97, D), "lm_head.weight": rand(97, D)}
    norms = ["model.layers.0.pre_norm", "model.norm"] if config.get("norm_first", True) else ["model.norm"]
    ranks = {"w": 5, "a": 3, "v": 4, "g": 6}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norms += [f"{at}.attn_norm", f"{at}.ffn_norm", f"{at}.attn.g_norm"]
        found |= {f"{at}.attn.x_{name}": rand(1, 1, D) for name in "rwkvag"}
        found |= {f"{at}.attn.{name}": rand(D) for name in ("k_k", "k_a")} | {f"{at}.attn.r_k": rand(HEADS, WIDTH)}
        found |= {f"{at}.attn.{name}_proj.weight": rand(D, D) for name in "rkvo"}
        for name, rank in ranks.items():
            if name != "v" or layer:
                lora = f"{at}.attn.{name}_lora.lora"
                found |= {f"{lora}.0.weight": rand(rank, D), f"{lora}.2.weight": rand(D, rank)}
                found |= {} if name == "g" else {f"{lora}.2.bias": rand(D)}
        found |= {f"{at}.ffn.key.weight": rand(128, D), f"{at}.ffn.value.weight": rand(D, 128)}
        found[f"{at}.ffn.x_k"] = rand(D)
    return found | {f"{name}.{part}": rand(D) for name in norms for part in ("weight", "bias")}


def compute(tensors, ids):
    """Logits [B, T, V] by the equations of the paper (Peng et al., 2025), token by token, in float64."""
    t = {name.removeprefix("model."): each.double() for name, each in tensors.items()}

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], 1e-5)

    def low(name, x, act=lambda h: h):
        return F.linear(act(x @ t[f"{name}.lora.0.weight"].T), t[f"{name}.lora.2.weight"], t.get(f"{name}.lora.2.bias"))

    x, first = F.embedding(ids, t["embeddings.weight"]), None
    x = norm("layers.0.pre_norm", x) if "layers.0.pre_norm.weight" in t else x
    for layer in range(SIZES["num_hidden_layers"]):
        at = f"layers.{layer}.attn"
        h = norm(f"layers.{layer}.attn_norm", x)
        shifted = F.pad(h, (0, 0, 1, 0))[:, :-1] - h
        r, w, k, v, a, g = (h + shifted * t[f"{at}.x_{name}"] for name in "rwkvag")
        mixed_v = v
        r, k, v = (each @ t[f"{at}.{name}_proj.weight"].T for each, name in ((r, "r"), (k, "k"), (v, "v")))
        first = v if first is None else first
        v = v if not layer else v + (first - v) * low(f"{at}.v_lora", mixed_v).sigmoid()
        w = (-(torch.tensor(-0.5).double().exp()) * low(f"{at}.w_lora", w, torch.tanh).sigmoid()).exp()
        a, g = low(f"{at}.a_lora", a).sigmoid(), low(f"{at}.g_lora", g, torch.sigmoid)
        removed = F.normalize((k * t[f"{at}.k_k"]).unflatten(-1, (HEADS, WIDTH)), dim=-1)
        k = k * (1 + (a - 1) * t[f"{at}.k_a"])
        r, k, v, w, a = (each.unflatten(-1, (HEADS, WIDTH)) for each in (r, k, v, w, a))
        S, reads = x.new_zeros(ids.shape[0], HEADS, WIDTH, WIDTH), []  # values × keys
        for i in range(ids.shape[1]):
            gone = S @ removed[:, i, :, :, None]  # B H V 1
            S = S * w[:, i, :, None] - gone @ (a * removed)[:, i, :, None] + v[:, i, :, :, None] @ k[:, i, :, None]
            reads.append((S @ r[:, i, :, :, None]).squeeze(-1))
        y = torch.stack(reads, 1).flatten(-2)
        y = F.group_norm(y.flatten(0, 1), HEADS, t[f"{at}.g_norm.weight"], t[f"{at}.g_norm.bias"], WIDTH * 1e-5)
        y = y.view_as(x) + ((r * k * t[f"{at}.r_k"]).sum(-1, keepdim=True) * v).flatten(-2)
        x = x + (y * g) @ t[f"{at}.o_proj.weight"].T
        h = norm(f"layers.{layer}.ffn_norm", x)
        h = h + (F.pad(h, (0, 0, 1, 0))[:, :-1] - h) * t[f"layers.{layer}.ffn.x_k"]
        x = x + (h @ t[f"layers.{layer}.ffn.key.weight"].T).relu().square() @ t[f"layers.{layer}.ffn.value.weight"].T
    return norm("norm", x) @ t["lm_head.weight"].T


def write_folder(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def difference():
    """The largest difference of a random model's logits from the equations."""
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        tensors = make_tensors(CONFIG)
        model = zoo.load(write_folder(Path(place) / "in", CONFIG, tensors)).eval()
        ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(1))
        return float((model(ids).logits - compute(tensors, ids)).abs().max())
