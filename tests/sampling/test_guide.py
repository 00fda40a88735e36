"""Text that follows a grammar: what is finished validates, what cannot be compiled is refused."""

import json
import random
import re
import subprocess
import sys

import pytest
import tokenizers as tokenizers_of
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

pytest.importorskip("llguidance")

import jsonschema

from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer, train_bpe
from zoo.errors import ConfigError
from zoo.sampling.draws import DrawState
from zoo.sampling.guide import GuideCompiler, find_banned
from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Sampler

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def record(properties, **more):
    return {"type": "object", "properties": properties, "required": list(properties), **more}


SCHEMAS = [
    {"type": "boolean"},
    {"type": "null"},
    {"type": ["integer", "null"]},
    {"type": "integer", "minimum": -5, "maximum": 1234},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 12},
    {"type": "integer", "multipleOf": 7, "minimum": 0},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "string", "maxLength": 10},
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "string", "pattern": "^[a-c]{2,5}-[0-9]+$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["red", "green", 3, None, {"a": [1]}]},
    {"const": {"kind": "fixed", "n": [1, 2]}},
    {"type": "array", "items": INTEGER, "maxItems": 4},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": "x"}, INTEGER], "items": False, "minItems": 2},
    {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2}, "maxItems": 3},
    record({"name": STRING, "age": INTEGER}, additionalProperties=False),
    record({"a": {"type": "boolean"}}, additionalProperties={"type": "integer", "maximum": 9}),
    {"type": "object", "properties": {"a": INTEGER, "b": {"const": "é"}}, "additionalProperties": False},
    record({"point": record({"x": {"type": "number"}, "y": {"type": "number"}}, additionalProperties=False)}),
    record({"tags": {"type": "array", "items": {"enum": ["p", "q"]}, "maxItems": 5}}, additionalProperties=False),
    {"anyOf": [{"type": "boolean"}, record({"u": INTEGER}, additionalProperties=False)]},
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 8}]},
    {"$defs": {"leaf": {"enum": ["l", "r"]}}, "type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 4},
    {
        "$defs": {
            "tree": record({"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}})
        },
        "$ref": "#/$defs/tree",
    },
    {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "null"}}, "additionalProperties": False},
    record({'q"uo\\te\n': {"const": '\u2028"\\'}}, additionalProperties=False),
    record({"big": {"type": "integer", "minimum": 10**9}, "email": {"type": "string", "format": "email"}}),
    {"type": "string", "enum": ["漢字", "🦓", "naïve"]},
]


@pytest.fixture(scope="module")
def tokenizers():
    texts = [f'Line {n} says {{"key": [{n}, true, null], "naïve": "漢字 {n}"}}\n' for n in range(200)]
    return {"bytes": make_byte_tokenizer(), "bpe": train_bpe(texts, 500), "pieces": train_pieces(texts)}


def train_pieces(texts):
    """A tokenizer as Llama's is: pieces with a space before them, and a token for each byte."""
    trained = tokenizers_of.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>"]))
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers_of.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(backend, "</s>")


def test_a_tokenizer_whose_bytes_are_not_known_is_refused_in_one_line():
    backend = tokenizers_of.Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2, "##b": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match=r"^guide: this tokenizer cannot be constrained, found .*WordPiece") as caught:
        GuideCompiler(Tokenizer(backend, "[SEP]"))
    assert len(str(caught.value).splitlines()) == 1


def write(guide, tokenizer, seed, *, temperature=1.0, most=400, bias=None):
    """What random weights write: the text, and whether it is finished."""
    sampling = Sampling(temperature=temperature, seed=seed, logit_bias=bias or {})
    state = DrawState(sampling, [0], stop_ids=[tokenizer.eos_id], guide=guide)
    draw_weights = torch.Generator().manual_seed(seed)
    sampler = Sampler()
    for _ in range(most):
        token = sampler.choose(torch.randn(1, guide.vocab_size, generator=draw_weights), [state])[0]
        assert token >= 0, state.fault
        state.advance(token)
        if token == tokenizer.eos_id:
            return tokenizer.decode(state.generated[:-1], special=True), True
        if state.finished:
            return tokenizer.decode(state.generated, special=True), True
    return tokenizer.decode(state.generated, special=True), False


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_what_random_weights_finish_validates(schema, kind, tokenizers):
    tokenizer = tokenizers[kind]
    guide = GuideCompiler(tokenizer, tokenizer.vocab_size + 9).compile("json_schema", schema)
    close = {tokenizer.encode(end)[0]: 3.0 for end in '"]}'} | {tokenizer.eos_id: 3.0}
    finished = 0
    for seed in range(3):
        text, ended = write(guide, tokenizer, seed, temperature=(0.0, 1.0)[seed > 0], bias=close)
        if ended:
            finished += 1
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    assert finished >= 1


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
def test_text_follows_a_regular_expression_and_a_grammar(kind, tokenizers):
    compiler = GuideCompiler(tokenizers[kind])
    sums = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,3}/\n'
    for form, source, check in (
        ("regex", "(ab|ç){2,5}[0-9]?", "(ab|ç){2,5}[0-9]?"),
        ("grammar", sums, r"[1-9]\d{0,3}(\+[1-9]\d{0,3})*"),
    ):
        guide = compiler.compile(form, source)
        texts = {write(guide, tokenizers[kind], seed, bias={tokenizers[kind].eos_id: 2.0}) for seed in range(20)}
        assert len(texts) > 5
        for text, ended in texts:
            assert ended
            assert re.fullmatch(check, text)


def test_rows_with_a_grammar_and_rows_without_share_a_batch(tokenizers):
    tokenizer = tokenizers["bpe"]
    compiler = GuideCompiler(tokenizer)
    one, other = compiler.compile("regex", "[0-9]+"), compiler.compile("json_schema", SCHEMAS[19])
    rng, logits = random.Random(1), torch.randn(6, tokenizer.vocab_size)
    guides = [one, None, other, one, None, other]
    states = [
        DrawState(Sampling(temperature=rng.choice([0, 1.0]), seed=row), [row], guide=g) for row, g in enumerate(guides)
    ]
    together = Sampler().choose(logits, states)
    assert together == [Sampler().choose(logits[row : row + 1], states[row : row + 1])[0] for row in range(6)]
    free = Sampler().choose(logits, [DrawState(state.sampling, state.prompt) for state in states])
    assert [together[1], together[4]] == [free[1], free[4]]
    assert tokenizer.decode([together[0]]).isdigit()
    assert tokenizer.decode([together[2]]).startswith("{")


def test_a_draft_is_looked_at_without_moving_the_grammar(tokenizers):
    tokenizer = tokenizers["bytes"]
    guide = GuideCompiler(tokenizer).compile("json_schema", SCHEMAS[19])
    rng = random.Random(4)
    for text in ('{"name":"x","age":12}', '{ "name": "", "age": -3}'):
        ids = tokenizer.encode(text)
        for start in range(len(ids)):
            draft = [*ids[start : start + rng.randint(0, 6)], *([44] if rng.random() < 0.5 else [])]
            matcher = guide.start()
            for token in ids[:start]:
                matcher.consume(token)
            before = find_banned([matcher], 257, torch.device("cpu"))
            ahead = find_banned(matcher.ahead(draft), 257, torch.device("cpu"))
            for place in range(len(ahead)):
                fresh = guide.start()
                for token in [*ids[:start], *draft[:place]]:
                    fresh.consume(token)
                assert torch.equal(ahead[place : place + 1], find_banned([fresh], 257, torch.device("cpu")))
            assert torch.equal(find_banned([matcher], 257, torch.device("cpu")), before)
            assert len(ahead) == len(draft) + 1 or ahead[-1, draft[len(ahead) - 1]]


def test_a_draft_may_run_over_the_end_of_the_grammar(tokenizers):
    tokenizer = tokenizers["bytes"]
    guide = GuideCompiler(tokenizer).compile("regex", "ab?")
    for draft in ([97, 98, 256, 97], [97, 256], [97, 98, 98]):
        matcher = guide.start()
        after = matcher.ahead(draft)
        banned = find_banned(after, 257, torch.device("cpu"))
        assert [(~row).nonzero()[:, 0].tolist() for row in banned[:2]] == [[97], [98, 256]]
        assert not matcher.finished
        assert matcher.fault is None
        matcher.consume(97)
        assert (~find_banned([matcher], 257, torch.device("cpu"))[0]).nonzero()[:, 0].tolist() == [98, 256]


def test_a_token_that_the_grammar_forbids_is_a_fault_and_no_text_follows(tokenizers):
    guide = GuideCompiler(tokenizers["bytes"]).compile("regex", "ab")
    state, other = (DrawState(Sampling(), [0], guide=guide) for _ in range(2))
    state.advance(98)
    assert state.fault
    assert not state.finished
    assert Sampler().choose(torch.zeros(2, 257), [state, other]) == [-1, 97]


def test_a_complete_grammar_is_finished_whether_or_not_the_end_was_written(tokenizers):
    guide = GuideCompiler(tokenizers["bytes"]).compile("regex", "ab")
    state = DrawState(Sampling(), [0], guide=guide)
    for _ in range(2):
        assert not state.finished
        state.advance(*Sampler().choose(torch.zeros(1, 257), [state]))
    assert state.finished
    assert Sampler().choose(torch.zeros(1, 257), [state]) == [256]


def test_padding_of_the_vocabulary_is_never_written(tokenizers):
    guide = GuideCompiler(tokenizers["bytes"], 400).compile("grammar", "start: /(.|\\n)*/")
    banned = find_banned([guide.start()], 420, torch.device("cpu"))[0]
    assert banned[257:].all()
    assert not banned[32:127].any()


def test_every_token_that_ends_a_text_may_end_a_complete_one(tokenizers):
    guide = GuideCompiler(tokenizers["bytes"], end_ids=[7]).compile("regex", "a?")
    assert (~find_banned([guide.start()], 257, torch.device("cpu"))[0]).nonzero()[:, 0].tolist() == [7, 97, 256]


DEEP = {"type": "integer"}
for _ in range(2000):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        *(
            (("regex", source))
            for source in ("(", "(?=a)b", r"\bfoo", "[z-a]", "(" * 3000, "a*" * 5000, "(a{1000}){1000}")
        ),
        *(
            (("grammar", source))
            for source in ("", "start: foo", 'start: "a', "start: a\na: b\nb: a", "{}", "(" * 9999)
        ),
        *((("json_schema", source)) for source in ("", "[1", "3", '"text"', '{"type": "wat"}', "[" * 5000)),
        *((("json_schema", source)) for source in ({"not": STRING}, {"type": "array", "uniqueItems": True}, False)),
        *((("json_schema", source)) for source in ({"$ref": "http://x/y"}, {"$ref": "#/$defs/none"}, {"minimum": {1}})),
        *(
            (("json_schema", source))
            for source in (DEEP, {"enum": ["x" * 70_000]}, {"type": "integer", "minimum": 3, "maximum": 1})
        ),
        ("json_schema", {"minimum": float("nan")}),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, dict) else repr(list(value))[:30],
)
def test_a_grammar_that_cannot_be_followed_is_refused_in_one_line(kind, source, tokenizers):
    with pytest.raises(ConfigError) as caught:
        GuideCompiler(tokenizers["bytes"]).compile(kind, source)
    assert str(caught.value).startswith(f"{kind}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_a_missing_package_is_one_line_with_the_way_to_get_it():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer\n"
        "from zoo.sampling.guide import GuideCompiler\n"
        "from zoo.errors import ConfigError\n"
        "try: GuideCompiler(make_byte_tokenizer())\n"
        "except ConfigError as error: print(error, 'torch' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "guide: llguidance is not installed (pip install 'transformer-zoo[guided]') False\n"
