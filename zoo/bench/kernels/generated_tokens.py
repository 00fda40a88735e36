# T tokens, V vocabulary
"""Check the engine of `zoo generate` from end to end on a device. Five architectures generate in bfloat16, with paged
caches, CUDA graphs, unequal prompts and speculation. The tokens are compared with a full forward pass."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.bench.kernels.decoding import build_loud, draw_prompts, run_prompts
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.bench.kernels.whole_runs import MODELS, judge
from zoo.compose import load
from zoo.generation.engine import Engine
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.run.layer import Model

TIMES = 4.0
"""Allowed gap between a chosen token's logit and the largest one, in multiples of a bfloat16 forward pass's error."""

ACCOUNTING = (
    "tokens: random weights, loud enough that one key too many changes the tokens; greedy, in bfloat16, five rows of "
    "unequal lengths. A token passes if its logit in a full float32 pass over the same tokens is the largest within "
    f"{TIMES:g} times the largest error of a full bfloat16 pass. Ways: as the engine does by itself (pages, graphs), "
    "without either, with tokens proposed from n-grams, and the dense model with a draft model"
)

PROMPTS, NEW = (3, 1, 40, 17, 100), 32


def list_jobs(settings: Settings) -> list[Measurement]:
    """List one job for each architecture."""
    return [Measurement(f"generate {name}", partial(check_model, settings, model)) for name, model in MODELS.items()]


def check_model(settings: Settings, name: str) -> ReportRow:
    """Generate in each way, and compare each token with the logits of a full forward pass. The row has the faults."""
    spec = load(name, ())
    exact = build_loud(spec, settings.seed).to(settings.device).eval()
    model = build_loud(spec, settings.seed).to(settings.device).bfloat16().eval()
    prompts = draw_prompts(spec.vocab_size, list(PROMPTS), settings.seed)
    ways: dict[str, dict[str, Any]] = {"by default": {}, "plain": {"graphs": False, "paged": False}}
    if spec.kind == "decoder":
        ways["speculation"] = {"speculate": 3}
    if name == MODELS["dense"]:
        draft = build_loud(load(name, ("n_layers=1",)), settings.seed).to(settings.device).bfloat16().eval()
        ways["draft"] = {"speculate": 3, "draft": draft}
    row: ReportRow = {"model": name, "ways": list(ways)}
    faults = []
    for way, options in ways.items():
        engine = Engine(
            model, rows=len(prompts), tokens=max(PROMPTS) + NEW, reuse=False, note=lambda line: None, **options
        )
        worst = max(
            measure_gap(exact, model, prompt, tokens)
            for prompt, tokens in zip(prompts, run_prompts(engine, prompts, NEW), strict=True)
        )
        row[way] = {"worst": worst, "graphs": bool(engine.passes.graphs and engine.passes.graphs.steps)}
        faults += [f"{way}: a token's logit lies {worst:.1f} errors below the largest"] if worst > TIMES else []
    return judge(row, faults)


@torch.inference_mode()
def measure_gap(exact: Model, model: Model, prompt: list[int], tokens: list[int]) -> float:
    """Return by how much a chosen token's logit is below the largest logit, at most, in a full float32 pass. The unit
    is the largest error of a full bfloat16 pass."""
    wanted, rounded = (find_logits(each, prompt, tokens) for each in (exact, model))
    chosen = wanted.gather(1, torch.tensor(tokens, device=wanted.device)[:, None])[:, 0]
    return float((wanted.amax(1) - chosen).max() / (rounded - wanted).abs().max())


def find_logits(model: Model, prompt: list[int], tokens: list[int]) -> Tensor:
    """Compute the logits [T, V] from which `tokens` [T] were chosen, in one pass without a cache."""
    device = next(model.parameters()).device
    if model.spec.kind == "decoder":
        ids = torch.tensor([prompt + tokens[:-1]], device=device)
        return model(ids).logits[0, len(prompt) - 1 :].float()
    started = [model.spec.start_id, *tokens[:-1]]  # type: ignore[attr-defined]
    written = torch.tensor([started], device=device)
    return model(torch.tensor([prompt], device=device), decoder_input_ids=written).logits[0].float()
