"""Tiny runs of other objectives than the next token."""

SMALL = [
    *("model.d_model=32", "model.n_heads=4", "model.head_dim=8", "model.d_ff=48", "model.vocab_size=300"),
    *("model.max_seq_len=64", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte"),
    *("batch_size=4", "seq_len=32"),
    *("eval_every=3", "eval_batches=2", "save_every=3", "schedule=constant", "schedule.warmup=0", "sample.tokens=4"),
    *("optim.lr=3e-3", "hydra.run.dir=run"),
]


SIZES = {"bert-tiny": ["model.n_layers=2"], "t5-tiny": ["model.n_layers=1"], "bart-tiny": ["model.n_layers=1"]}
