"""The packaged tiny models under each kernel that runs here: they train, are measured and write the same."""

import pytest
import torch
from torch.nn import functional as F

import zoo
from support.packaged_specs import one_in
from zoo.errors import KernelError
from zoo.kernels.found import find_machine

pytestmark = pytest.mark.xdist_group("flex")  # which share compiled code

TINY = ("llama-tiny", "mistral-tiny", "gpt-tiny", "mixtral-tiny")
TRAINED = ("eager", "sdpa")
WITHOUT_GRADIENT = ("flex",) if find_machine("cpu").packages >= {"compiler", "avx2"} else ()
LENGTH = 150  # more than mistral-tiny's window of 64, and than one of flex's blocks of 128


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What a few steps come to, and the folder of each, by model and kernel."""
    folder = tmp_path_factory.mktemp("runs")
    text = folder / "text"
    text.mkdir()
    (text / "numbers.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}\n" for n in range(3000)))
    data = ["data=text", f"data.path={text}", "data.tokenizer.kind=byte"]
    steps = ["steps=3", "batch_size=2", f"seq_len={LENGTH}", "eval_every=null", "save_every=null", "eval_batches=2"]
    found = {}

    def run(model, kernel):
        if (model, kernel) not in found:
            where = f"hydra.run.dir={folder / model / kernel}"
            found[model, kernel] = zoo.train(model, [*data, *steps, "sample=null", f"kernel={kernel}", where])
        return found[model, kernel]

    return run


@pytest.mark.parametrize("model", one_in(6, TINY))
def test_a_tiny_model_trains_to_the_same_losses_under_eager_and_sdpa(model, runs):
    eager, sdpa = (runs(model, kernel) for kernel in TRAINED)
    for name in ("train_loss", "val_loss"):
        assert sdpa[name] == pytest.approx(eager[name], rel=1e-5)
        assert 3 < eager[name] < 10


@pytest.mark.slow
@pytest.mark.parametrize("model", TINY)
def test_a_trained_tiny_model_measures_and_writes_the_same_under_every_kernel(model, runs):
    loaded = zoo.load(runs(model, "eager")["run"], device="cpu")
    ids = torch.randint(32, 122, (2, LENGTH))
    losses, texts = {}, {}
    for kernel in (*TRAINED, *WITHOUT_GRADIENT):
        loaded.kernel = kernel
        with torch.no_grad():
            logits = loaded(ids).logits
        losses[kernel] = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
        texts[kernel] = zoo.generate(loaded, ids[:, :70], 12, kernel=kernel).tolist()
    for kernel, loss in losses.items():
        assert loss == pytest.approx(losses["eager"], rel=1e-6), kernel
    assert all(text == texts["eager"] for text in texts.values())


@pytest.mark.skipif(not WITHOUT_GRADIENT, reason="flex has no C++ compiler here, or no AVX2")
def test_a_tiny_model_does_not_train_under_flex_on_a_cpu(runs):
    with pytest.raises(KernelError, match=r"flex was asked for, but .*gradient.* would do"):
        runs("llama-tiny", "flex")
