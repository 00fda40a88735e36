"""What zoo inspect measures, against formulas by hand: heads, activations, routing, gradient noise, pictures."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from support.packaged_specs import load, one_in
from support.tiny_models import MIXED, spec_of
from support.tiny_runs import SMALL, write_corpus
from zoo.cli import run
from zoo.data.tokens import Batch
from zoo.inspection.heads import measure_entropy, measure_rank
from zoo.inspection.inspection_page import draw_activations
from zoo.inspection.look import look, trim
from zoo.inspection.noise import estimate_noise, measure_noise, summarise_norms
from zoo.kernels.dispatch import KERNELS
from zoo.run.builder import build


def make_rows(spec, rows=3, tokens=11, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, spec.vocab_size, (rows, tokens), generator=draw)
    return [Batch(ids[at : at + 1], ids[at : at + 1]) for at in range(rows)]


def test_entropy_and_rank_are_known_for_equal_shares_and_for_a_key_each():
    even, own = torch.full((2, 3, 12, 12), 1 / 12), torch.eye(12).expand(2, 3, 12, 12)
    assert measure_entropy(even).numpy() == pytest.approx(math.log(12))
    assert measure_entropy(own).abs().max() == 0
    assert measure_rank(even).numpy() == pytest.approx(1, abs=1e-4)
    assert measure_rank(own).numpy() == pytest.approx(12, rel=1e-5)
    assert measure_entropy(torch.tensor([0.1, 0.1])).item() == pytest.approx(
        math.log(2), rel=1e-6
    )  # 0.8 went to a sink


def test_a_map_is_the_softmax_of_products_by_hand():
    """Of a layer without positions, from its own weights: q·kᵀ/√C, causal, GQA's keys repeated; its mean over rows."""
    spec = spec_of(["position=none", "n_layers=2"])
    model = build(spec, device="cpu", seed=3).eval()
    rows = make_rows(spec)
    figures, maps = look(model, rows)
    attention = model.blocks[0].attention
    ids = torch.cat([row.input_ids for row in rows])
    x = model.blocks[0].attention_norm(model.embedding.tokens(ids))
    q = (x @ attention.q.weight.T).unflatten(-1, (4, 8))
    k = (x @ attention.k.weight.T).unflatten(-1, (2, 8)).repeat_interleave(2, 2)
    scores = torch.einsum("bthc,bshc->bhts", q, k) / math.sqrt(8)
    hidden = torch.ones(11, 11).triu(1).bool()
    chances = scores.masked_fill(hidden, -math.inf).softmax(-1)
    torch.testing.assert_close(maps["attention-000"], chances.mean(0).detach(), rtol=1e-5, atol=1e-6)
    heads = figures["attentions"][0]["heads"]
    entropy = -(chances * chances.clamp(min=1e-30).log()).sum(-1).mean((0, 2))
    assert [each["entropy"] for each in heads] == pytest.approx(entropy.tolist(), rel=1e-5)
    assert heads[0]["uniform"] == pytest.approx(sum(math.log(n) for n in range(1, 12)) / 11)
    spectrum = torch.linalg.svd(chances.double())[1]
    spectrum = spectrum / spectrum.sum(-1, keepdim=True)
    ranks = (-(spectrum * spectrum.log()).sum(-1)).exp().mean(0)
    assert [each["rank"] for each in heads] == pytest.approx(ranks.tolist(), rel=1e-4)


def test_heads_without_scores_share_equally_and_the_model_is_as_before():
    spec = spec_of(["position=none"])
    model = build(spec, device="cpu", seed=0).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.q.weight.zero_()
    before, eager = model.kernel, KERNELS["eager"]
    figures, maps = look(model, make_rows(spec))
    for each in figures["attentions"]:
        for head in each["heads"]:
            assert head["entropy"] == pytest.approx(head["uniform"], rel=1e-6)
    torch.testing.assert_close(maps["attention-000"][0], torch.ones(11, 11).tril() / torch.arange(1, 12)[:, None])
    assert model.kernel == before and KERNELS["eager"] is eager
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


OFTEN = (["attention=mamba2", "position=none"], ["attention=mla"], ["attention=differential"], MIXED)
SELDOM = (
    ["attention=sliding"],
    ["kind=encoder", "attention=longformer"],
    ["kind=encoder", "attention=fourier", "position=learned"],
    ["block=hyper", "+streams={kind: weighted, count: 4}"],
    ["ffn=moe"],
    ["shared_layers=true"],
)


@pytest.mark.parametrize(
    "overrides",
    [*OFTEN, *(pytest.param(each, marks=pytest.mark.slow) for each in SELDOM)],
    ids=lambda each: " ".join(each)[:40],
)
def test_every_attention_has_a_map_or_is_said_to_have_none(overrides):
    """Each row of a map sums to 1, and hidden keys have nothing."""
    spec = spec_of(overrides)
    model = build(spec, device="cpu", seed=1).eval()
    figures, maps = look(model, make_rows(spec, tokens=12))
    named = {each["path"] for each in [*figures["attentions"], *figures["without_maps"]]}
    assert named and figures["activations"]
    for each in figures["attentions"]:
        found = maps[each["map"]]
        assert found.shape[0] == len(each["heads"])
        assert found.sum(-1).numpy() == pytest.approx(1, abs=1e-5)
        if spec.kind == "decoder" and found.shape[1] == found.shape[2]:
            assert found.triu(1).abs().max() == 0
        assert all(0 <= head["entropy"] <= head["uniform"] * (1 + 1e-6) + 1e-6 for head in each["heads"])
    if "attention=mamba2" in overrides:
        assert not maps and {each["kind"] for each in figures["without_maps"]} == {"mamba2"}
    if "shared_layers=true" in overrides:
        assert [each["call"] for each in figures["attentions"]] == [0, 1, 2]


@pytest.mark.parametrize("name", one_in(3, ["t5-tiny", "qwen3-next-tiny", "bert-tiny"]))
def test_hybrids_encoders_and_pairs_have_maps_of_each_softmax(name):
    """Of a hybrid, of an encoder that sees both ways, and of cross-attention, whose map is as wide as the source."""
    spec = load(name)
    model = build(spec, device="cpu", seed=1).eval()
    rows = make_rows(spec.towers().get("encoder", spec), tokens=9)
    if "decoder" in spec.towers():
        rows = [row._replace(decoder_input_ids=row.input_ids[:, :7]) for row in rows]
    figures, maps = look(model, rows)
    shapes = {each["path"]: tuple(maps[each["map"]].shape[1:]) for each in figures["attentions"]}
    if name == "t5-tiny":
        found = {path.split(".")[0] + path.split(".")[-1]: shape for path, shape in shapes.items()}
        assert found == {"encoderattention": (9, 9), "decoderattention": (7, 7), "decodercross": (7, 9)}
        assert not figures["without_maps"]
    elif name == "bert-tiny":
        assert set(shapes.values()) == {(9, 9)} and all(maps[each].triu(1).sum() > 0 for each in maps)
    else:
        assert {each["kind"] for each in figures["without_maps"]} == {"gated_delta"} and shapes and figures["routers"]


def test_activations_are_root_mean_squares_of_what_modules_give():
    spec = spec_of()
    model = build(spec, device="cpu", seed=0).eval()
    rows = make_rows(spec)
    figures, _ = look(model, rows)
    given = {}
    handles = [
        model.get_submodule(each["path"]).register_forward_hook(
            lambda _, inputs, output, path=each["path"]: given.setdefault(path, []).append(output)
        )
        for each in figures["activations"]
    ]
    with torch.no_grad():
        model(torch.cat([row.input_ids for row in rows]))
    assert [each["axis"] for each in figures["activations"]] == ["embedding", *["attention", "ffn", "block"] * 3]
    assert len(handles) == 10
    given["embedding"] = [model.embedding.tokens(torch.cat([row.input_ids for row in rows]))]
    for each in figures["activations"]:
        (output,) = given[each["path"]]
        assert each["rms"] == pytest.approx(output.square().mean().sqrt().item(), rel=1e-5)
        assert each["largest"] == pytest.approx(output.abs().max().item(), rel=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [["block=sandwich", "+block.residual_scale=0.5"], ["ffn=moe", "n_experts=4", "top_k=1", "ffn.shared=gated"]],
    ids=["norms of outputs", "shared expert"],
)
def test_what_joins_the_stream_is_what_a_layer_adds_to_it(overrides):
    """Of each layer: what goes in, and what attention and feed-forward are said to add, sum to what comes out."""
    spec = spec_of(overrides)
    model = build(spec, device="cpu", seed=0).eval()
    for name, weight in model.named_parameters():
        if "out_norm" in name:  # far from 1, as trained ones are
            torch.nn.init.constant_(weight, 3.0)
    rows = make_rows(spec)
    figures, _ = look(model, rows)
    joins = [each for each in figures["activations"] if "joins" in each]
    assert [each["joins"] for each in joins] == ["attention", "ffn"] * spec.n_layers
    kept = {}
    for path in [*(each["path"] for each in joins), *(f"blocks.{at}" for at in range(spec.n_layers))]:
        keep = partial(lambda path, _, given, output: kept.update({path: (given[0], output)}), path)
        model.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        model(torch.cat([row.input_ids for row in rows]))
    for at in range(spec.n_layers):
        came, went = kept[f"blocks.{at}"]
        own = joins[2 * at : 2 * at + 2]
        factors = [each["added"] / each["rms"] for each in own]
        added = sum(factor * kept[each["path"]][1] for factor, each in zip(factors, own, strict=True))
        assert torch.allclose(came + added, went, atol=1e-5)


def test_the_curves_of_what_is_added_end_at_the_last_layer():
    spec = spec_of(["ffn=moe", "n_experts=4", "top_k=1", "ffn.shared=gated"])
    figures, _ = look(build(spec, device="cpu", seed=0).eval(), make_rows(spec))
    drawn = draw_activations(figures["activations"])
    assert drawn.count("h0") == 3 * spec.n_layers  # a dot each: the stream, attention, feed-forward
    assert "attention adds" in drawn and "cross" not in drawn


def test_a_router_whose_scores_are_set_has_the_shares_that_follow():
    spec = spec_of(["ffn=moe", "n_experts=4", "top_k=1"])
    model = build(spec, device="cpu", seed=0).eval()
    routers = [each for each in model.modules() if getattr(getattr(each, "spec", None), "axis", "") == "router"]
    with torch.no_grad():
        routers[0].gate.weight.zero_()
        routers[0].gate.weight[2] = 1.0  # expert 2 where a token's channels sum to more than 0, else another
    x, rows = [], make_rows(spec, rows=5)
    handle = routers[0].register_forward_pre_hook(lambda _, given: x.append(given[0]))
    figures, _ = look(model, rows)
    handle.remove()
    above = float((torch.cat(x).sum(-1) > 0).double().mean())
    first = figures["routers"][0]
    assert first["shares"][2] == pytest.approx(above) and sum(first["shares"]) == pytest.approx(1)
    assert first["dead"] == [at for at, share in enumerate(first["shares"]) if share == 0] and len(first["dead"]) >= 2
    entropy = -sum(share * math.log(share) for share in first["shares"] if share)
    assert first["evenness"] == pytest.approx(entropy / math.log(4))
    assert first["busiest"] == pytest.approx(4 * max(first["shares"]))


# ---------------------------------------------------------------- gradient noise


class Linear:
    """An objective of a linear model: ½(w·x − y)² of a row, whose gradient is (w·x − y)·x."""

    def targets(self, row):
        return 1

    def loss(self, model, row, *, weight):
        from types import SimpleNamespace

        error = model(row.input_ids).squeeze(-1) - row.targets
        return SimpleNamespace(total=weight * 0.5 * error.square().sum())


def make_linear(count, width=6, seed=0):
    """At w = 0, with y = x·v + noise: the gradient's mean is −v, and tr Σ = (d + 1)·|v|² + σ²·d for normal x."""
    draw = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(width, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    v = torch.full((width,), 0.5, dtype=torch.float64)
    x = torch.randn(count, width, generator=draw, dtype=torch.float64)
    y = x @ v + 2 * torch.randn(count, generator=draw, dtype=torch.float64)
    rows = [Batch(x[at : at + 1], y[at : at + 1]) for at in range(count)]
    return model, rows, float(v @ v), (width + 1) * float(v @ v) + 4 * width


def test_the_noise_scale_of_a_linear_model_is_the_one_that_is_known():
    signals, noises = [], []
    for seed in range(24):
        model, rows, signal, noise = make_linear(24, seed=seed)
        found = measure_noise(model, Linear(), rows)
        gradients = torch.cat([-row.targets[:, None] * row.input_ids for row in rows])
        mean = gradients.mean(0)
        assert found.noise == pytest.approx(float((gradients - mean).square().sum()) / 23)  # the sample's covariance
        assert found.signal == pytest.approx(float(mean @ mean) - found.noise / 24)
        signals.append(found.signal)
        noises.append(found.noise)
    for values, known in ((signals, signal), (noises, noise)):
        error = torch.tensor(values).std() / math.sqrt(len(values))
        assert abs(sum(values) / len(values) - known) < 3.5 * error


def test_the_noise_scales_error_is_the_jackknifes():
    model, rows, _, _ = make_linear(30, seed=5)
    found = measure_noise(model, Linear(), rows)
    left_out = [measure_noise(model, Linear(), rows[:at] + rows[at + 1 :]).scale for at in range(len(rows))]
    mean = sum(left_out) / 30
    assert found.error == pytest.approx(math.sqrt(29 / 30 * sum((each - mean) ** 2 for each in left_out)), rel=1e-6)
    assert all(each.grad is None for each in model.parameters())


def test_two_batch_sizes_give_back_what_their_norms_were_made_of():
    signal, noise = 0.3, 7.0
    for small, large in ((1, 32), (4, 5), (16, 1024)):
        found = estimate_noise(small, large, signal + noise / small, signal + noise / large)
        assert found == pytest.approx((signal, noise))


def test_rows_that_are_too_few_to_see_a_gradient_say_so():
    found = summarise_norms([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], 0.0)
    assert found.scale is None and found.describe()["rows"] is None


def test_padding_is_cut_off_a_row():
    row = Batch(torch.arange(6)[None], torch.arange(6)[None], attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))
    cut = trim(row)
    assert cut.attention_mask is None and cut.input_ids.tolist() == cut.targets.tolist() == [[0, 1, 2, 3]]


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def corpus_and_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    (folder / "texts").mkdir()
    corpus = write_corpus(folder / "texts")
    experts = ["model.ffn=moe", "model.n_experts=4", "model.top_k=2"]
    zoo.train("llama-tiny", [*SMALL, f"data.path={corpus}", *experts, f"hydra.run.dir={folder}/run"])
    return folder


@pytest.fixture
def trained(corpus_and_run, monkeypatch):
    monkeypatch.chdir(corpus_and_run)
    return corpus_and_run


def test_a_run_is_inspected_into_a_page_that_needs_no_network(trained, capsys):
    assert run(["inspect", "run", "--rows", "2", "--noise-rows", "4", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "Heads" in said and "Routing" in said and "Gradient noise scale" in said
    folder = trained / "run/inspect"
    figures = json.loads((folder / "inspect.json").read_text())
    assert figures["data"] == "the run's validation split" and figures["context"] == 16 and figures["rows"] == 2
    maps = load_file(folder / "maps.safetensors")
    assert {name: tuple(each.shape) for name, each in maps.items()} == {
        "attention-000": (4, 16, 16),
        "attention-001": (4, 16, 16),
    }
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and page.count("<svg") == 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert {each.name for each in folder.iterdir()} == {
        *("attention-000.png", "attention-001.png", "routing.png", "activations.svg", "entropy.svg", "rank.svg"),
        *("index.html", "inspect.json", "maps.safetensors"),
    }


def test_a_checkpoint_is_inspected_on_other_data(trained, capsys):
    (trained / "other.txt").write_text("the cat is here\n" * 40)
    asked = ["inspect", "run@3", "data=text", "data.path=other.txt", "--context", "8", "--noise-rows", "0", "--json"]
    assert run([*asked, "--out", "seen", "--device", "cpu"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["model"].endswith("step-000003") and figures["data"].startswith("all of data=text")
    assert figures["noise"] is None and figures["context"] == 8
    assert (trained / "seen/index.html").is_file()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["run", "--context", "99"], "context: is 99, and the model reads 32"),
        (["run", "steps=3"], "steps: an evaluation takes no such override"),
    ],
)
def test_what_cannot_be_inspected_is_refused_in_one_line(options, fault, trained, refused):
    assert fault in refused("inspect", *options, "--device", "cpu", "--out", "none")[0]
    assert not (trained / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "objective"), [("bert-tiny", "mlm"), ("t5-tiny", "span_corruption")])
def test_runs_of_other_objectives_are_inspected_on_the_rows_that_they_make(model, objective, tmp_path, monkeypatch):
    from zoo.inspection import inspect_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    corpus = write_corpus(tmp_path / "texts")
    data = ["data=text", f"data.path={corpus}", "data.tokenizer.kind=byte", "model.vocab_size=512"]
    zoo.train(model, [*data, "steps=2", "batch_size=2", "seq_len=24", "eval_batches=1", "hydra.run.dir=run"])
    found = inspect_model("run", rows=2, noise_rows=3)
    assert found.figures["objective"] == objective and found.figures["context"] == 24
    assert found.figures["attentions"] and found.figures["noise"]["measured_on"] == 3
    folder = zoo.export(zoo.load("run"), tmp_path / "hf", verify=False)
    shutil.copy(Path(found.figures["model"], "tokenizer.json"), folder)
    again = inspect_model(folder, ["data=text", "data.path=texts"], rows=2, noise_rows=0, context=16)
    assert again.figures["attentions"] and again.figures["data"].startswith("all of data=text")
