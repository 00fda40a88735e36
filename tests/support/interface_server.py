"""Serve requests as vLLM's transformers backend does: tokens of several requests in one row, and keys that the function
of the attention interface keeps."""

import torch
from transformers import AttentionInterface

NAME = "kept_by_server"


class InterfaceServer:
    """Requests whose next tokens pass a model of transformers in one row [1, T], with the position of each. `attend` is
    the attention interface's function of the name NAME while this is the newest server."""

    def __init__(self, model):
        self.model, self.kept = model, {}
        AttentionInterface.register(NAME, self.attend)
        model.set_attn_implementation(NAME)

    def attend(self, module, query, key, value, attention_mask, scaling, sliding_window, softcap, **others):
        assert attention_mask is None and query.shape[0] == 1
        new = (key[0], value[0], self.requests, self.positions)
        old = self.kept.get(module.layer_idx)
        held = (
            new
            if old is None
            else [torch.cat(each, -2 if each[0].ndim == 3 else -1) for each in zip(old, new, strict=True)]
        )
        self.kept[module.layer_idx] = held
        keys, values, requests, positions = held
        apart = self.positions[:, None] - positions
        seen = (self.requests[:, None] == requests) & (apart >= 0)
        seen &= apart < (sliding_window or torch.inf)
        group = query.shape[1] // len(keys)
        scores = query[0] @ keys.repeat_interleave(group, 0).mT * scaling
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values.repeat_interleave(group, 0)
        return mixed.transpose(0, 1)[None], None

    def run(self, rows):
        """Compute logits [T, V] of the next tokens of requests, {request: [(position, token), …]}, end to end."""
        flat = [(request, *each) for request, given in rows.items() for each in given]
        self.requests, self.positions, ids = (torch.tensor(each) for each in zip(*flat, strict=True))
        with torch.no_grad():
            return self.model(input_ids=ids[None], position_ids=self.positions[None], use_cache=False).logits[0]

    def generate(self, prompts, count):
        """Generate `count` greedy tokens for each prompt; a prompt longer than two tokens is read in two parts."""
        texts = [list(prompt) for prompt in prompts]
        parts = {request: list(enumerate(text)) for request, text in enumerate(texts)}
        self.run({request: part[: len(part) // 2] for request, part in parts.items() if len(part) > 2})
        rows = {request: part[len(part) // 2 :] if len(part) > 2 else part for request, part in parts.items()}
        for _ in range(count):
            logits, end = self.run(rows), 0
            for request, given in rows.items():
                end += len(given)
                texts[request].append(int(logits[end - 1].argmax()))
            rows = {request: [(len(text) - 1, text[-1])] for request, text in enumerate(texts)}
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
