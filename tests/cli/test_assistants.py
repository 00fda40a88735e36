"""What an assistant is offered: tools that answer as the verbs do, over the SDK's own protocol, and a skill."""

import asyncio
import json
import os
import sys

import pytest
import yaml

import zoo
from support.command_lines import ROOT
from zoo.cli import agent_tools, run
from zoo.cli.app import VERBS, make_command
from zoo.cli.mcp import make_server
from zoo.errors import ConfigError
from zoo.report import format_json

ARMS = {"plain": "", "qk_norm": "model.attention.qk_norm=rmsnorm"}
DATA = "model=llama-tiny steps=2 data.max_bytes=20000"


def ask(*calls, arguments=()):
    """Start `zoo mcp` as an assistant does; return its tools, and the answer to each call."""
    mcp = pytest.importorskip("mcp")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    server = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "zoo", "mcp", *arguments], env=environment, cwd=os.getcwd()
    )

    async def talk():
        async with mcp.Client(server) as client:
            return (await client.list_tools()).tools, [await client.call_tool(name, given) for name, given in calls]

    return asyncio.run(talk())


def verb(capsys, *words):
    """What a verb prints as JSON."""
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_tools_answer_over_stdio_as_the_verbs_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tools, answers = ask(
        ("price", {"model": "gpt2", "overrides": ["attention=mqa"], "setup": {"context": 64}}),
        ("price", {"model": "gpt3"}),
        ("price", {"model": "gpt2", "overrides": ["d_model=${oc.env:HOME}"]}),
        ("solve", {"question": "batch", "model": "gpt2", "gpu": "h100", "setup": {"contxt": 3}}),
        ("plan_experiment", {"arms": {**ARMS, "other": "hydra.launcher=joblib"}, "shared": DATA}),
        ("draw", {"model": "gpt2"}),
    )
    price, *refused, drawn = [(each.is_error, each.content[0].text) for each in answers]
    assert price == (False, format_json(zoo.stats("gpt2", ["attention=mqa"], context=64)))
    said = [
        "gpt3: no packaged model",
        "which names code|only the command line may",
        "contxt: no field",
        "Hydra's own settings",
    ]
    for (failed, text), expected in zip(refused, said, strict=True):
        assert failed and any(each in text for each in expected.split("|")) and "Traceback" not in text
    assert drawn[1].startswith("<svg") and drawn[1].rstrip().endswith("</svg>")
    assert {each.name for each in tools} == {each.__name__ for each in agent_tools.READING}
    assert all(each.annotations.read_only_hint for each in tools)
    assert "- context: Sequence length" in next(each.description for each in tools if each.name == "price")
    assert list(tmp_path.iterdir()) == []


def test_what_writes_is_offered_when_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tools, _ = ask(arguments=["--allow-write"])
    writing = [each.name for each in tools if not each.annotations.read_only_hint]
    assert writing == ["run_experiment"]


def test_tools_give_what_the_verbs_print(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"a": "gpt2", "b": "llama-tiny"}
    assert named | agent_tools.diff(*named.values()) == verb(capsys, "diff", *named.values())
    assert agent_tools.explain("attention.gqa") == verb(capsys, "explain", "attention.gqa")
    assert agent_tools.list_models(["mixtral"]) == verb(capsys, "list", "mixtral")
    for question in ("batch", "context", "gpu"):
        solved = verb(capsys, "solve", question, "gpt2", "--gpu", "l4")
        assert json.loads(format_json(agent_tools.solve(question, "gpt2", gpu="l4"))) == solved
    with pytest.raises(ConfigError, match=r"gpu: says what the batch must fit on"):
        agent_tools.solve("batch", "gpt2")


def test_a_plan_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = agent_tools.plan_experiment(ARMS, DATA, {"seeds": 2, "sigma": 0.01})
    assert [each["arm"] for each in planned["arms"]] == [*ARMS] and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_experiment_that_was_run_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = agent_tools.run_experiment(ARMS, "mine", f"{DATA} seq_len=16 batch_size=1", {"seeds": 2})
    told = agent_tools.read_report("mine")
    assert [each["arm"] for each in told["arms"]] == [*ARMS] and told["unfinished"] == []
    assert [*ran["values"]["val_loss"]["plain"].values()] == [*told["arms"][0]["val_loss"].values()]


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(ConfigError, match=r"mcp: needs mcp 2 or newer.*pip install 'transformer-zoo\[mcp\]'"):
        make_server()


def test_the_skill_has_every_command_in_the_words_of_its_help(capsys):
    assert run(["skills"]) == 0
    _, front, text = capsys.readouterr().out.split("---\n", 2)
    stated = yaml.safe_load(front)
    assert stated["name"] == "zoo" and 100 < len(stated["description"]) <= 1024
    for name in VERBS:
        command = make_command().get_command(None, name)
        assert f"\n### zoo {name}\n" in text
        assert command.help.replace("\b", "").strip().split("\n")[0] in text
    assert "\b" not in text and "attention: " in text and "### zoo solve batch" in text
