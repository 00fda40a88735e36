"""`zoo score` with published classifiers: rerankers, reward models, cross-encoders and several labels at once, each
beside transformers on the same records."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, processors

import zoo
import zoo.cli
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 270,
}
PAIRS = [
    {"query": "how far is the moon", "document": "The moon is 384,400 km away.", "id": 7},
    {"query": "how far is the moon", "document": "Bread is made of flour.", "id": 8},
    {"query": "bread", "document": "Bread is made of flour.", "id": 9},
]
TALKS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    [{"role": "user", "content": "What is 2 + 2, please?"}, {"role": "assistant", "content": "5"}],
]
TEMPLATE = "{% for each in messages %}<{{ each['role'] }}>{{ each['content'] }}</s>{% endfor %}"


def write_tokenizer(folder, *, pairs=False):
    """A byte tokenizer's file; with `pairs` [CLS] text [SEP] text [SEP], of two types."""
    made = make_byte_tokenizer()
    made.add_special(["[CLS]", "[SEP]", "</s>"])
    if pairs:
        first, last = made.ids_of(["[CLS]", "[SEP]"])
        made.backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", first), ("[SEP]", last)],
        )
    made.save(folder)
    file, names = str(folder / "tokenizer.json"), ["input_ids", "token_type_ids", "attention_mask"]
    more = {"model_input_names": names} if pairs else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=file, pad_token="</s>", **more)


def make_model(folder, kind, config, **more):
    """A random reference model in a folder, whose config.json has these fields too."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | more))
    return model


def make_cross_encoder(folder, **more):
    """A BERT with one number for two texts."""
    config = transformers.BertConfig(**SIZES, num_labels=1)
    return make_model(folder, transformers.BertForSequenceClassification, config, **more), write_tokenizer(
        folder, pairs=True
    )


def run_verb(*arguments, capsys):
    assert zoo.cli.run(["score", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def write_lines(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize(
    ("stated", "sigmoid"),
    [
        ({}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0"}}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
    ],
)
def test_a_cross_encoder_scores_pairs_as_its_config_says(stated, sigmoid, tmp_path, capsys):
    model, tokenizer = make_cross_encoder(tmp_path, **stated)
    found = run_verb(tmp_path, "--file", write_lines(tmp_path / "pairs.jsonl", PAIRS), capsys=capsys)
    for record, line in zip(PAIRS, found, strict=True):
        with torch.no_grad():
            logit = model(
                **tokenizer(record["query"], record["document"], return_tensors="pt", return_token_type_ids=True)
            ).logits[0, 0]
        assert {name: line[name] for name in record} == record
        assert line["predicted"] == pytest.approx(float(logit.sigmoid() if sigmoid else logit), abs=2e-5)
    chosen = zoo.score(tmp_path, [("a", "b")], activation="none" if sigmoid else "sigmoid")
    other = zoo.score(tmp_path, [("a", "b")])
    assert chosen[0]["predicted"] != pytest.approx(other[0]["predicted"], abs=1e-4)


def test_a_reward_model_reads_conversations_as_its_template_writes_them(tmp_path, capsys):
    tokenizer = write_tokenizer(tmp_path)
    config = transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=8, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    config.max_position_embeddings = 128
    model = make_model(tmp_path, transformers.Qwen3ForSequenceClassification, config)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    wanted = []
    for talk in TALKS:
        ids = tokenizer.apply_chat_template(talk, chat_template=TEMPLATE, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        assert ids[0, -1] == tokenizer.pad_token_id  # the padding ends a text here: the token before it is read
        with torch.no_grad():
            wanted.append(float(model(input_ids=ids).logits[0, 0]))
    found = run_verb(
        tmp_path, "--file", write_lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in TALKS]), capsys=capsys
    )
    assert [line["predicted"] for line in found] == pytest.approx(wanted, abs=2e-5)
    asked = [{"prompt": talk[0]["content"], "response": talk[1]["content"]} for talk in TALKS]
    found = run_verb(tmp_path, "--file", write_lines(tmp_path / "asked.jsonl", asked), capsys=capsys)
    assert [line["predicted"] for line in found] == pytest.approx(wanted, abs=2e-5)
    long, notes = [{"role": "user", "content": "long " * 99}], []
    zoo.score(tmp_path, [*TALKS, long], note=notes.append)
    assert notes == ["1 of 3 texts are cut at 128 tokens, which is what the model reads"]
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"chat template: .* has none"):
        zoo.score(tmp_path, TALKS)


def test_several_labels_at_once_are_those_above_one_half(tmp_path):
    config = transformers.BertConfig(
        **SIZES, problem_type="multi_label_classification", id2label={0: "rude", 1: "sad", 2: "old"}
    )
    model = make_model(tmp_path, transformers.BertForSequenceClassification, config)
    tokenizer = write_tokenizer(tmp_path, pairs=True)
    texts = ["a text", "another one", "and a third"]
    for text, found in zip(texts, zoo.score(tmp_path, texts, every=True), strict=True):
        with torch.no_grad():
            chances = model(**tokenizer(text, return_tensors="pt")).logits[0].sigmoid()
        assert list(found["probabilities"].values()) == pytest.approx(chances.tolist(), abs=2e-5)
        assert found["predicted"] == [name for name, chance in found["probabilities"].items() if chance > 0.5]


def test_an_encoder_decoder_labels_texts_by_what_it_reads_again(tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    end = tokenizer.convert_tokens_to_ids("</s>")
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    backend.save(str(tmp_path / "tokenizer.json"))
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = transformers.BartConfig(
        **sizes, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=270, num_labels=3, eos_token_id=end
    )
    model = make_model(tmp_path, transformers.BartForSequenceClassification, config)
    texts = ["short", "a longer text than that"]
    for text, found in zip(texts, zoo.score(tmp_path, texts, every=True), strict=True):
        ids = torch.tensor([backend.encode(text).ids])
        with torch.no_grad():
            chances = model(input_ids=ids).logits[0].softmax(-1)
        assert list(found["probabilities"].values()) == pytest.approx(chances.tolist(), abs=2e-5)


@pytest.mark.parametrize(
    ("records", "more", "fault"),
    [
        ([PAIRS[0], {"query": "no document"}], [], "line 2 has no field 'document', found query"),
        ([PAIRS[0], {"query": "a", "document": 3}], [], "line 2 is a list of 2 (a string, a pair, or messages)"),
        ([{"messages": [{"content": "who?"}]}], ["--template", "chatml"], "line 1: messages[0]: has no role"),
        ([PAIRS[0]], ["--activation", "softmax"], "activation: softmax is over classes"),
        ([PAIRS[0]], ["--activation", "sigmod"], "activation: 'sigmod' is none (did you mean 'sigmoid'?)"),
    ],
)
def test_a_mistake_in_a_record_is_named_by_its_line(records, more, fault, tmp_path, capsys):
    make_cross_encoder(tmp_path)
    file = write_lines(tmp_path / "records.jsonl", records)
    assert zoo.cli.run(["score", str(tmp_path), "--file", str(file), *more]) == 2
    assert fault in capsys.readouterr().err


def test_an_activation_that_is_none_of_ours_is_refused(tmp_path):
    make_cross_encoder(tmp_path, sentence_transformers={"activation_fn": "torch.nn.modules.activation.GELU"})
    with pytest.raises(ConfigError, match=r"activation_fn is torch.nn.modules.activation.GELU"):
        zoo.score(tmp_path, [("a", "b")])


@pytest.mark.parametrize("function", ["torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"])
def test_sentence_transformers_cross_encoder_gives_the_same_scores(function, tmp_path):
    there = pytest.importorskip("sentence_transformers")
    _, tokenizer = make_cross_encoder(tmp_path, sentence_transformers={"activation_fn": function, "version": "5.0.0"})
    tokenizer.save_pretrained(tmp_path)
    pairs = [(each["query"], each["document"]) for each in PAIRS]
    wanted = there.CrossEncoder(str(tmp_path), device="cpu").predict(pairs).tolist()
    assert [each["predicted"] for each in zoo.score(tmp_path, pairs)] == pytest.approx(wanted, abs=2e-5)
