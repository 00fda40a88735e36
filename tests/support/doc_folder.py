"""The folder in which the commands of docs/ run: tiny models and files under the names that the pages give them."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from pathlib import Path

from support import published_folders
from support.forked_processes import run_zoo
from support.reference_folders import edit

RECORDS = {
    "chat.jsonl": [
        {"messages": [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": str(a + b)}]}
        for a in range(5)
        for b in range(9)
    ],
    "prefs.jsonl": [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": "no"} for a in range(5) for b in range(9)
    ],
    "pairs.jsonl": [{"anchor": f"the cat {n} sat", "positive": f"a dog {n} ran"} for n in range(40)],
    "test.jsonl": [{"text": f"the cat {n} sat on the mat", "label": n % 2} for n in range(12)],
    "ranked.jsonl": [{"query": "the cat", "document": f"a dog {n}"} for n in range(3)],
    "asked.jsonl": [{"prompt": "the cat", "adapter": "one"}, {"prompt": "the cat"}],
    "prompts.jsonl": [{"prompt": "the cat", "max_new_tokens": 4}, {"prompt": "a dog", "max_new_tokens": 4}],
}
SIZES = "n_layers=2 model.d_model=64 model.n_heads=2 model.n_kv_heads=2 model.d_ff=96"


def fill_folder(folder: Path) -> Path:
    """Make RUN, DIR and whatever else the pages call by a name in capitals, and the files that they read."""
    texts = (f"{number}: {text}" for number in range(200) for text in published_folders.TEXT[:3])
    (folder / "FILE").write_text("\n\n".join(texts), encoding="utf-8")
    for name, records in RECORDS.items():
        (folder / name).write_text("".join(f"{json.dumps(each)}\n" for each in records), encoding="utf-8")
    rows = [f"the cat {n} sat\ta dog {n} ran\t{n % 5}" for n in range(12)]
    (folder / "stsb.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows]) + "\n", encoding="utf-8")
    law = [(n, d, 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28) for n in (2e8, 5e8, 1e9, 4e9) for d in (4e9, 1e10, 6e10)]
    lines = [f"{n:.0f},{d:.0f},{loss * (1 + 0.001 * (-1) ** i)}" for i, (n, d, loss) in enumerate(law)]
    (folder / "points.csv").write_text("\n".join(["N,D,loss", *lines]) + "\n", encoding="utf-8")
    published_folders.llama(folder / "DIR")
    edit(folder / "DIR", max_position_embeddings=512)  # rotary, so that no tensor has this size
    template = folder / "DIR" / "chat_template.jinja"  # by which an answer begins where a prompt for one ends
    template.write_text(template.read_text().replace("assistant: {% endif", "<s>assistant: {% endif"))
    shutil.copytree(folder / "DIR", folder / "BASE")
    published_folders.bert(folder / "MASKED")
    published_folders.bert(folder / "ENCODER", "BertModel")
    for name in ("CLASSIFIER", "RERANKER"):
        published_folders.bert(folder / name, "BertForSequenceClassification")
    published_folders.t5(folder / "T5")
    run_commands(
        [
            f"zoo train llama-tiny {SIZES} steps=4 data.max_bytes=300000 hydra.run.dir=RUN",
            *(
                f"zoo train weights=BASE lora={{rank:4}} data=text data.path=FILE seed={number} seq_len=32 steps=2 "
                f"hydra.run.dir=RUN{number}"
                for number in (1, 2)
            ),
        ],
        folder,
    )
    return folder


def run_commands(commands: list[str], folder: Path) -> None:
    """Run commands of `zoo` in a folder, each in a process that has imported Zoo."""
    with contextlib.chdir(folder):
        for command in commands:
            ((code, said),) = run_zoo(shlex.split(command.removeprefix("zoo ")), timeout=1500)
            assert code == 0 and (said.strip() or command.startswith("zoo chat")), f"{command}\n{said}"
