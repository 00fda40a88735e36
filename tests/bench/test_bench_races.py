"""`zoo bench` with several peers: who races, who leaves, what the rows are held to, and what is written."""

import json
import sys

import pytest

from pages import bench_page as page
from zoo.bench import load_time, racing, show
from zoo.bench.calling import WORKERS, MissingPeer, make_environment
from zoo.bench.race_plan import Race, list_racers, list_strangers, plan_race
from zoo.bench.race_report import compute_linears_share, count_same, make_report, take_medians, write_report
from zoo.cli import run
from zoo.errors import ConfigError, ZooError

TINY = ["d_model=32", "n_layers=2", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=256"]
PROCESSOR = {"name": "a processor", "cores": 2, "memory_bytes": 2**34, "isa": "avx2"}
LIMITS = {"gemm_fp32_tflops": 0.33, "gemm_bf16_tflops": 2.2, "read_gb_s": 28.0}
PYTHONS = {"zoo": "python", "hf": "python", "litgpt": "python"}


def answer(rate=10.0, **more):
    found = {"rate": rate, "version": "1", "torch": "2", "peak_bytes": 10, "busy": 1.0, "startup": 1.0}
    return found | {"first": [0.5], "full": [1.0], "logits": [1.0, 2.0], "tokens": [[1, 2, 3]]} | more


@pytest.fixture
def staged(monkeypatch):
    """A race whose workers are answers: of each job what `script[name]` gives, which may raise."""
    asked = []

    def stage(script):
        def worker(name, python, job):
            asked.append((name, job["workload"], job["weights"], job["alone"]))
            if name == "machine":
                return PROCESSOR | {"threads": 1, "why": None} if job["workload"] == "threads" else dict(LIMITS)
            given = script.get(name, answer())
            found = given(job) if callable(given) else given
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(racing.load_time, "write_tokenizer", lambda folder: None)
        monkeypatch.setattr(racing, "run_worker", worker)
        return asked

    return stage


def test_a_missing_peer_is_told_in_one_line_and_the_others_are_raced(staged):
    staged({"litgpt": MissingPeer("--against litgpt: /a/python says: No module (pip install litgpt)")})
    told = []
    found = racing.run_race(Race(workload="decode", rounds=2), PYTHONS, told.append)
    assert list(found["contenders"]) == ["zoo", "hf"]
    assert len(found["contenders"]["hf"]["rates"]) == 2
    assert [line for line in told if "litgpt" in line] == [
        "--against litgpt: /a/python says: No module (pip install litgpt)"
    ]
    # What others read names no Python of this machine.
    assert found["absent"] == {"litgpt": "not installed (pip install litgpt requests)"}


def test_a_race_whose_peers_are_all_missing_is_an_error_with_a_line_each(staged):
    staged({name: MissingPeer(f"--against {name}: missing") for name in ("hf", "litgpt")})
    with pytest.raises(ConfigError) as error:
        racing.run_race(Race(workload="decode"), PYTHONS)
    assert error.value.faults == ["--against hf: missing", "--against litgpt: missing"]


def test_a_peer_that_fails_halfway_leaves_and_zoo_failing_is_an_error(staged):
    calls = []

    def fail_later(job):
        calls.append(job["workload"])
        return answer() if len(calls) < 3 else ZooError("hf decode: ended by signal 9")

    asked = staged({"hf": fail_later})
    found = racing.run_race(Race(workload="decode", rounds=3), PYTHONS)
    assert list(found["contenders"]) == ["zoo", "litgpt"]
    assert found["absent"] == {"hf": "hf decode: ended by signal 9"}
    assert sum(name == "hf" for name, *_ in asked) == 3  # the check and two rounds, and never again
    staged({"zoo": lambda job: answer() if job["workload"] == "export" else ZooError("zoo: broken")})
    with pytest.raises(ZooError, match="zoo: broken"):
        racing.run_race(Race(workload="decode"), PYTHONS)


def test_what_zoo_cannot_do_yet_is_a_row_that_says_so(staged):
    def lack(job):
        ready = job["workload"] in ("check", "export") or job["alone"]
        return answer() if ready else {"absent": "not yet: zoo has no Engine"}

    staged({"zoo": lack})
    found = racing.run_race(Race(workload="batch", rounds=1), {"zoo": "python", "hf": "python"})
    assert list(found["contenders"]) == ["zoo, one by one", "hf"]
    assert found["contenders"]["hf"]["ratio"] is None
    assert show.make_table(found).row_count == 3
    assert "zoo: not yet: zoo has no Engine" in list(show.list_notes(found))


def test_other_weights_are_a_row_more_that_need_not_compute_the_same(staged):
    def weigh(job):
        return answer(20.0 if job["weights"] else 10.0, logits=[1.0, 2.5 if job["weights"] else 2.0])

    asked = staged({"zoo": weigh, "ctranslate2": weigh})
    pythons = {"zoo": "python", "hf": "python", "ctranslate2": "python"}
    found = racing.run_race(Race(workload="decode", rounds=1, weights="int8"), pythons)
    assert list(found["contenders"]) == ["zoo", "hf", "ctranslate2", "zoo int8", "ctranslate2 int8"]
    assert {weights for name, _, weights, _ in asked if name == "hf"} == {""}
    assert found["contenders"]["zoo int8"]["ratio"] == 0.5  # our float32 beside our int8
    assert found["contenders"]["ctranslate2 int8"]["ratio_weights"] == 1.0
    assert found["differences"]["int8 logits"]["zoo int8"] == pytest.approx(0.2)


def test_a_peer_is_raced_only_in_what_it_does_and_alone_in_nothing_is_an_error(staged):
    assert list(list_strangers(Race(workload="batch"), ["hf", "litgpt"])) == ["litgpt"]
    staged({})
    with pytest.raises(ConfigError, match=r"--against litgpt: not raced in load \(train, decode, prefill"):
        racing.run_race(Race(workload="load"), {"zoo": "python", "litgpt": "python"})


def test_rounds_end_by_the_clock_or_by_number():
    assert racing.goes_on(Race(workload="decode", seconds=0), [])  # one at least
    assert racing.goes_on(Race(workload="decode", seconds=100), [40.0])
    assert not racing.goes_on(Race(workload="decode", seconds=100), [40.0, 35.0])
    assert racing.goes_on(Race(workload="decode", seconds=0, rounds=2), [40.0])
    assert not racing.goes_on(Race(workload="decode", seconds=100, rounds=2), [1.0, 1.0])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (["batch", "--compile"], "--compile: batch is not raced compiled"),
        (["load", "--weights", "int8"], "--weights: load has one precision"),
        (["load", "--batch", "8"], "--batch, --length: load reads one short prompt"),
        (["kernels", "--isa", "avx2"], "--isa: races have it"),
        (["decode", "--out", "/no/such/folder/x.json"], "--out /no/such/folder/x.json: there is no folder"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(capsys, line, fault):
    assert run(["bench", *line]) == 2
    assert capsys.readouterr().err.startswith(f"zoo: error: {fault}")


def test_every_worker_of_a_held_race_gets_the_variables_that_hold_it():
    job = Race(workload="decode", isa="avx2", threads=2).job("folder")
    for name in ("zoo", "machine", "hf", "ctranslate2"):
        env = make_environment(name, job)
        assert env["ATEN_CPU_CAPABILITY"] == "avx2"
        assert env["ONEDNN_MAX_CPU_ISA"] == env["CT2_FORCE_CPU_ISA"] == env["MKL_ENABLE_INSTRUCTIONS"] == "AVX2"
        assert env["OMP_NUM_THREADS"] == "2"
    assert make_environment("hf", job | {"isa": ""}).get("CT2_FORCE_CPU_ISA") is None


def test_a_billion_parameters_are_loaded_unless_the_shape_says_otherwise():
    assert plan_race("load", {}, []).shape.count_params() == 1_100_048_384
    assert plan_race("load", {}, ["n_layers=1"]).shape.n_layers == 1
    assert plan_race("load", {}, []).dtype == "bf16"
    assert plan_race("decode", {"dtype": None}, []).dtype == "fp32"


def test_a_folder_that_the_disk_has_no_room_for_is_refused_with_the_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(load_time.shutil, "disk_usage", lambda place: type("usage", (), {"free": 2**30}))
    with pytest.raises(ConfigError, match=r"load: 1.0 GiB free in .*, 7.1 are needed \(--shape for a smaller model"):
        load_time.require_room(plan_race("load", {}, []), str(tmp_path))


def test_tokens_are_counted_up_to_the_first_that_differs_in_each_row():
    assert count_same([[1, 2, 3], [4, 5, 6]], [[1, 2, 9], [4, 5, 6]]) == 5
    assert count_same([[1, 2, 3]], [[9, 2, 3]]) == 0
    assert show.format_tokens({"same_tokens": 5, "tokens": 6}) == "5 of 6 before the first that differs"
    assert show.format_tokens({"same_tokens": 6, "tokens": 6}) == "equal"


def test_the_share_of_the_linears_is_of_the_fastest_way_of_the_rows_precision():
    machine = {"linears": {"fp32": {"slow": 30.0, "fast": 20.0}, "int8": {"only": 10.0}}}
    assert compute_linears_share(Race(workload="decode"), 40.0, machine) == pytest.approx(0.8)
    assert compute_linears_share(Race(workload="decode", batch=8), 320.0, machine) == pytest.approx(0.8)
    assert compute_linears_share(Race(workload="decode"), 40.0, machine, "int8") == pytest.approx(0.4)
    assert compute_linears_share(Race(workload="decode"), 40.0, machine, "int4") is None


def test_medians_are_taken_inside_nested_figures():
    rounds = [{"rate": rate, "linears": {"fp32": {"way": 10 * rate}}} for rate in (1.0, 5.0, 2.0)]
    assert take_medians(rounds) == {"rate": 2.0, "linears": {"fp32": {"way": 20.0}}}


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The workers' own modules, and a job with a folder of weights for all of them."""
    monkeypatch.syspath_prepend(WORKERS)
    import run_zoo

    given = {"batch": 8, "length": 24, "new_tokens": 8, "spend": 0.1}
    job = plan_race("batch", given, TINY).job(str(tmp_path / "model"))
    run_zoo.export_folder(job)
    return job


def test_ragged_requests_get_from_every_contender_what_they_get_alone(scripts):
    import run_hf
    import run_hf_cb
    import run_zoo
    import timing
    import torch

    requests = timing.make_requests(scripts)
    assert len({len(ids) for ids, _ in requests}) == 8  # all lengths differ, and so do the answers'
    assert len({new for _, new in requests}) == 8
    found = {}
    for worker, changes in ((run_zoo, {"alone": True}), (run_hf, {}), (run_hf_cb, {})):
        job = scripts | changes
        model = worker.CONTENDER.load(job, torch.float32).eval()
        found[worker.__name__] = worker.CONTENDER.serve(model, requests, job)
    for manager in run_hf_cb.MANAGERS:
        manager.stop(block=True, timeout=5)
    assert [len(row) for row in found["run_zoo"]] == [new for _, new in requests]
    assert found["run_hf"] == found["run_zoo"]
    assert found["run_hf_cb"] == found["run_zoo"]


def test_the_engines_events_are_gathered_by_request(scripts, monkeypatch):
    import run_zoo
    import timing

    from zoo.generation import engine
    from zoo.generation.request import Event

    class Engine:
        """Answers a request with its number and the numbers of tokens, one event a step, the last request first."""

        def __init__(self, model):
            self.waiting = []

        def add(self, request):
            self.waiting.append([request, 0])
            return len(self.waiting) - 1

        @property
        def busy(self):
            return any(done < request.max_new_tokens for request, done in self.waiting)

        def step(self):
            events = []
            for number, each in reversed(list(enumerate(self.waiting))):
                request, done = each
                if done < request.max_new_tokens:
                    each[1] += 1
                    events.append(Event(number, 0, 100 * number + done))
                    if each[1] == request.max_new_tokens:
                        events.append(Event(number, 0, None, "length"))
            return events

    monkeypatch.setattr(engine, "Engine", Engine, raising=False)
    requests = timing.make_requests(scripts)
    made = run_zoo.serve_together(None, requests, scripts)
    assert made == [[100 * number + index for index in range(new)] for number, (_, new) in enumerate(requests)]


def test_a_race_of_compiled_peers_says_that_zoo_is_not(scripts, monkeypatch):
    import run_zoo

    monkeypatch.setattr(run_zoo, "WAYS", [])
    monkeypatch.setattr(run_zoo, "prepare", lambda *args, **options: "ready")
    run_zoo.make_ready(None, scripts | {"compile": True, "weights": ""})
    assert run_zoo.WAYS == ["ready", "not compiled: its decoding steps are replayed"]


def test_weights_of_fewer_bits_are_prepared_as_asked_and_how_is_told(scripts, monkeypatch):
    import run_zoo

    asked = []
    monkeypatch.setattr(run_zoo, "WAYS", [])

    def prepare(model, weights, keep, rows):
        asked.append((weights, keep, rows))
        return "113 products in 61 calls"

    monkeypatch.setattr(run_zoo, "prepare", prepare)
    monkeypatch.setattr(run_zoo, "BUCKETS", (1, 2, 4, 8))
    for weights in ("int8", ""):
        run_zoo.make_ready("model", scripts | {"weights": weights, "batch": 4})
    assert asked == [("int8", False, (1, 2, 4)), (None, False, (1, 2, 4))]
    assert run_zoo.CONTENDER.describe() == "113 products in 61 calls; 113 products in 61 calls"


def test_a_contender_that_makes_another_number_of_tokens_is_an_error(scripts):
    import timing

    job = scripts | {"new_tokens": 4, "batch": 2}
    with pytest.raises(ValueError, match=r"\[1, 1\] new tokens came back, 4 a row"):
        timing.time_generation(lambda count: [[0], [0]], job)
    with pytest.raises(ValueError, match="1 of 2 requests got another number"):
        timing.time_requests(lambda requests: [[0] * requests[0][1], []], job)


def test_the_bare_linears_are_the_products_of_a_step_in_every_way(scripts):
    import linears
    import torch

    shapes = linears.list_shapes(scripts["shape"])
    assert sum(rows * columns for rows, columns in shapes) == plan_race("decode", {}, TINY).shape.matrix_params
    torch.manual_seed(0)
    weight = torch.randn(64, 48)
    weight = weight / weight.norm(dim=1, keepdim=True)
    for precision, limit in (("fp32", 1e-5), ("bf16", 2e-2), ("fp16", 2e-3), ("int8", 3e-2)):
        for way, (dtype, prepare) in linears.WAYS[precision].items():
            for rows in (1, 8):
                x = torch.randn(rows, 48)
                try:
                    made = prepare(weight, rows)(x.to(dtype)).float()
                except (RuntimeError, NotImplementedError):
                    continue  # this processor does not have it: its time is not given
                assert (made - x @ weight.t()).abs().max() < limit * x.norm(), way
    found = linears.time_linears(scripts | {"batch": 1}, ["fp32"])
    assert found["fp32"]["F.linear"] > 0


def make_found(isa, workload="decode", rate=20.0, **machine):
    """A report of zoo and transformers as a race gives it."""
    plan = Race(workload=workload, rounds=1, threads=2)
    racers = list_racers(plan, {"zoo": "python", "hf": "python"})
    runs = {"zoo": [answer(rate)], "hf": [answer(10.0)], "zoo, one by one": [answer(5.0)]}
    runs = {racer.name: runs[racer.name] for racer in racers}
    found = make_report(plan, racers, runs, [LIMITS | {"linears": {"fp32": {"F.linear": 40.0}}}])
    return found | {"processor": PROCESSOR | {"isa": isa}, "absent": {"litgpt": "not installed (pip)"}}


def test_a_repeated_race_replaces_its_file_and_another_isa_has_its_own(tmp_path):
    for isa, rate in (("avx2", 20.0), ("amx", 50.0), ("avx2", 30.0)):
        write_report(make_found(isa, rate=rate), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["amx-decode-fp32-1.json", "avx2-decode-fp32-1.json"]
    found = page.read_reports(tmp_path)
    assert found["avx2"][0]["contenders"]["zoo"]["rate"] == 30.0
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"broken.json: no report of a race"):
        page.read_reports(tmp_path)


def test_a_section_replaces_that_of_its_own_instruction_set_alone():
    first = page.replace_section(f"# Head\n\n{page.PLACE}\n\ntail\n", "avx2", [make_found("avx2")])
    both = page.replace_section(first, "amx", [make_found("amx", rate=50.0), make_found("amx", "batch")])
    assert both.startswith("# Head\n") and both.endswith("tail\n")
    assert "| decode fp32, 1 x 32 tokens | 50.0 | 10.0 (5.00x) |" in both.replace(" | - |", " |").replace(" |  |", " |")
    again = page.replace_section(both, "avx2", [make_found("avx2", rate=70.0)])
    assert again == both.replace("| 20.0 | 10.0 (2.00x)", "| 70.0 | 10.0 (7.00x)").replace("80%", "280%")
    assert page.replace_section(again, "avx2", [make_found("avx2", rate=70.0)]) == again
    with pytest.raises(ConfigError, match="page: no section of avx2"):
        page.replace_section("# Head\n", "avx2", [make_found("avx2")])


def test_a_section_says_where_other_programs_ran_and_lists_each_version_once():
    found = make_found("avx2")
    found["contenders"]["hf"]["busy"] = 0.4
    section = page.write_section("avx2", [found, make_found("avx2", "prefill")])
    assert "not a quiet machine: share of a core that the measuring threads had: hf 40%." in section
    assert section.count("zoo 1 on torch 2, hf 1 on torch 2.") == 1
    assert "litgpt: not installed (pip)" in section


def test_the_page_holds_the_reports_that_are_kept():
    from pages import performance_page

    written = performance_page.PAGE.read_text(encoding="utf-8")
    assert performance_page.write_page(written) == written, (
        "docs/performance.md is old (tests/pages/performance_page.py)"
    )
    assert page.PLACE in written
    for reports in page.read_reports(performance_page.REPORTS).values():
        for report in reports:
            # No path of a machine. A race against no other program (the engine's scenarios) misses none.
            assert "/" not in "".join(report.get("absent", {}).values())


@pytest.mark.slow
def test_a_folder_is_loaded_from_the_shell_by_zoo_and_by_transformers_with_the_same_text(capsys, tmp_path):
    line = ["bench", "load", "--against", "hf", "--rounds", "1", "--threads", "1", "--shape", ",".join(TINY)]
    assert run([*line, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["contenders"]["hf"]["same_tokens"] == 1
    assert found["contenders"]["zoo"]["seconds"] > 0.5  # torch alone takes as long
    assert json.loads(next(tmp_path.glob("*-load-bf16-1.json")).read_text()) == found


@pytest.mark.slow
def test_ragged_requests_race_from_the_command_line(capsys):
    line = ["bench", "batch", "--against", "hf,hf_cb", "--rounds", "1", "--threads", "1", "--shape", ",".join(TINY)]
    sizes = ["--batch", "8", "--length", "16", "--new-tokens", "8"]
    assert run([*line, *sizes, "--json", "--peer-python", sys.executable]) == 0
    rows = json.loads(capsys.readouterr().out)["contenders"]
    assert {"zoo, one by one", "hf", "hf_cb"} <= set(rows)
    assert all(row["same_tokens"] == row["tokens"] for row in rows.values())
