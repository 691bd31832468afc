"""Collecting: only what is verified is kept, nothing is asked twice, nothing is lost."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from collecting import settings
from hostile_endpoint import answer, endpoint, raw, say
from models import LATENT, TINY, random_decoder

from agartha.core.errors import BudgetReached, ConfigError, DataError
from agartha.data.mixture import Mixture, SourceSpec
from agartha.data.traces import Trace, read_card, read_traces
from agartha.distill import collect as collect_module
from agartha.distill import endpoint as endpoint_module
from agartha.distill.collect import collect, run
from agartha.distill.config import CollectConfig, TracesConfig
from agartha.distill.share import draw_tasks
from agartha.distill.teachers import EngineTeacher, describe_teacher
from agartha.learn.parallel import Parallel, launch
from agartha.ledger.record import record
from agartha.ledger.schema import BudgetConfig
from agartha.model.hf_folder import save_model
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.countdown import Countdown, problem
from agartha.worlds.types import Task, Verdict
from agartha.worlds.world import World

COUNTDOWN = Countdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


def chance(prompt: str, of: int = 4) -> int:
    """A number that only the prompt decides."""
    return hashlib.sha256(prompt.encode()).digest()[0] % of


def solution(prompt: str) -> str:
    numbers, target = prompt.removesuffix(" :").split(" -> ")
    return COUNTDOWN.oracle(problem([int(n) for n in numbers.split()], int(target)))


def sometimes(prompt: str) -> str:
    """Three of four tasks are solved."""
    return solution(prompt) if chance(prompt) else "<answer> 1 + 1 </answer>"


class Numbered:
    """The k-th answer to a prompt."""

    def __init__(self, reply: Callable[[str, int], str]) -> None:
        self.reply, self.times = reply, Counter()

    def __call__(self, prompt: str) -> str:
        self.times[prompt] += 1
        return self.reply(prompt, self.times[prompt] - 1)


def test_only_verified_answers_are_kept_with_a_card(tmp_path: Path) -> None:
    with endpoint(answer(sometimes)) as server:
        path = collect(settings(server.url, "licence=MIT"), tmp_path)
    traces, card = read_traces(path), read_card(path)
    solved = {p for p in server.prompts() if chance(p)}
    wrong = set(server.prompts()) - solved
    assert len(solved) + len(wrong) == 12 and wrong
    assert {t.task.prompt for t in traces} == solved == {t.task.prompt for t in traces if t.is_verified}
    assert all(COUNTDOWN.verify(t.task, t.completion).passed and t.teacher == "teacher-1" for t in traces)
    asked = len(solved) + 3 * len(wrong)  # a solved task is not asked again
    assert len(server.bodies) == asked
    counts = {"tasks": 12, "answers": asked, "verified": len(solved), "wrong": 3 * len(wrong), "duplicates": 0}
    assert card["counts"].items() >= counts.items() and card["levels"]["3"]["kept"] == card["traces"] == len(solved)
    assert card["reasons"] == {"wrong_numbers": 3 * len(wrong)}
    assert card["teacher"]["endpoint"] == server.url and card["teacher"]["answered_as"] == ["teacher-1"]
    assert card["world"] == COUNTDOWN.spec() and card["licence"] == "MIT" and card["complete"] is True
    tokens = sum(len(sometimes(p)) // 4 for p in server.prompts())
    assert card["cost"]["endpoint_dollars"] == pytest.approx((5 * asked + 10 * tokens) / 1e6)
    assert card["usage_complaints"]["count"] == 0 and card["date"].startswith("20")


def test_the_file_is_a_corpus_of_pretraining(tmp_path: Path) -> None:
    with endpoint(answer(sometimes)) as server:
        path = collect(settings(server.url), tmp_path)
    mixture = Mixture.open([SourceSpec(name="traces", path=str(path), weight=1, licence="MIT")])
    assert list(mixture.texts()) == [f"{t.task.prompt}\n{t.completion}" for t in read_traces(path)]


def test_a_finished_collection_asks_nobody_again(tmp_path: Path) -> None:
    with endpoint(answer(sometimes)) as server:
        config = settings(server.url)
        path = collect(config, tmp_path)
        before, content = len(server.bodies), path.read_bytes()
        assert collect(config, tmp_path) == path and len(server.bodies) == before
        more = config.model_copy(update={"tasks": 20})
        assert len(read_traces(collect(more, tmp_path))) > 8  # asks for what is missing alone
        assert len(set(server.prompts())) == 20 and len(server.bodies) < 2 * before
        with pytest.raises(ConfigError, match=r"holds answers with temperature=1\.0, now it is 0\.5"):
            collect(config.model_copy(update={"temperature": 0.5}), tmp_path)
        path.unlink()
        assert collect(config, tmp_path).read_bytes() == content and len(set(server.prompts())) == 20


def test_duplicates_and_what_is_beyond_per_task_are_left_out(tmp_path: Path) -> None:
    def reply(prompt: str, number: int) -> str:
        return [solution(prompt), solution(prompt).replace(" ", "  ", 1), solution(prompt) + "\n", "no idea"][number]

    with endpoint(answer(Numbered(reply))) as server:
        config = settings(server.url, "attempts=4", "per_task=2", "stop_early=false")
        path = collect(config, tmp_path)
    card = read_card(path)
    assert card["counts"].items() >= {"answers": 48, "verified": 36, "duplicates": 24, "wrong": 12}.items()
    assert len(read_traces(path)) == 12


def test_answers_that_are_cut_off_or_filtered_are_never_kept(tmp_path: Path) -> None:
    for finish, count in (
        ("length", "cut_off"),
        ("content_filter", "finish_content_filter"),
        ("tool_calls", "finish_tool_calls"),
    ):
        with endpoint(answer(solution, finish_reason=finish)) as server, pytest.raises(DataError, match="none of 36"):
            collect(settings(server.url), tmp_path / finish)
        bad, good = answer(solution, finish_reason=finish), answer(solution)
        with endpoint(*[bad] * 5, good) as server:
            path = collect(settings(server.url), tmp_path / f"{finish} at first")
        assert len(read_traces(path)) == 12 and read_card(path)["counts"][count] == 5


def test_reasoning_is_part_of_the_trace_and_judged_with_it(tmp_path: Path) -> None:
    with endpoint(answer(solution, message={"reasoning_content": "let me see"})) as server:
        traces = read_traces(collect(settings(server.url), tmp_path))
    assert (
        all(t.completion.startswith("<think>\nlet me see\n</think>\n\n<answer>") for t in traces) and len(traces) == 12
    )


class Broken(World):
    """Faults on some answers, and pays half for others."""

    name, levels = "broken", (1,)

    def task(self, seed: int, level: int | None = None) -> Task:
        return Task(self.name, str(seed), f"question {seed % 30}?", {}, 1)

    def in_training(self, task: Task) -> bool:
        return True

    def verify(self, task: Task, completion: str) -> Verdict:
        if chance(task.prompt) == 0:
            raise RuntimeError("out of order")
        return Verdict(0.5 if chance(task.prompt) == 1 else 1.0, "partly: half of it")


def test_a_fault_of_the_verifier_is_no_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "load_world", lambda name: Broken())
    with endpoint(say("yes")) as server:
        path = collect(settings(server.url, "tasks=500", "levels=[]", "attempts=1"), tmp_path)  # has only 30
    kinds, card = Counter(chance(f"question {i}?") for i in range(30)), read_card(path)
    assert card["counts"]["tasks"] == 30 and card["counts"]["faults"] == kinds[0] > 0
    assert card["counts"]["wrong"] == kinds[1] > 0 and len(read_traces(path)) == kinds[2] + kinds[3]
    assert card["fault"] == "RuntimeError: out of order" and card["reasons"] == {"partly": kinds[1]}


def test_held_out_tasks_are_never_asked(tmp_path: Path) -> None:
    config = settings("http://127.0.0.1:9/v1", "tasks=60")
    every = draw_tasks(config, COUNTDOWN, frozenset())
    assert len(every) == 60 == len({t.prompt for t in every}) and all(map(COUNTDOWN.in_training, every))
    held_out = frozenset(COUNTDOWN.key(task) for task in every[::3])
    with endpoint(answer(solution)) as server:
        path = collect(settings(server.url, "tasks=60"), tmp_path, held_out=held_out)
    keys = {COUNTDOWN.key(problem([int(n) for n in p.split(" ->")[0].split()], 1)) for p in server.prompts()}
    assert not keys & held_out and len(server.prompts()) == 60
    assert not {COUNTDOWN.key(t.task) for t in read_traces(path)} & held_out
    # answers that came before a task was held out are not used either
    with endpoint(answer(solution)) as server:
        open_folder = tmp_path / "b"
        collect(settings(server.url, "tasks=60"), open_folder)
        again = collect(settings(server.url, "tasks=60"), open_folder, held_out=held_out)
    assert not {COUNTDOWN.key(t.task) for t in read_traces(again)} & held_out
    everything = frozenset(
        COUNTDOWN.key(problem([a, b, c], 1)) for a in range(1, 21) for b in range(a, 21) for c in range(b, 21)
    )
    with pytest.raises(DataError, match="no task that may be asked"):
        collect(config, tmp_path / "c", held_out=everything)


def test_a_limit_of_money_keeps_everything_and_a_higher_one_goes_on(tmp_path: Path) -> None:
    with endpoint(answer(solution)) as server:
        with pytest.raises(BudgetReached):
            collect(settings(server.url, "endpoint.dollars=0.0015"), tmp_path)
        spent = len(server.bodies)
        path = tmp_path / "traces.parquet"
        card = read_card(path)
        assert 0 < len(read_traces(path)) == spent < 12 and card["complete"] is False
        assert card["cost"]["endpoint_dollars"] <= 0.0015
        whole = collect(settings(server.url, "endpoint.dollars=1"), tmp_path)
        assert len(server.bodies) == 12 == len(set(server.prompts())) and len(read_traces(whole)) == 12
        fresh = collect(settings(server.url), tmp_path / "fresh")
    assert fresh.read_bytes() == whole.read_bytes()


def test_a_limit_with_room_for_nothing_asks_nobody(tmp_path: Path) -> None:
    with endpoint(answer(solution)) as server, pytest.raises(BudgetReached):
        collect(settings(server.url, "endpoint.dollars=0.0001"), tmp_path)
    assert not server.bodies and not (tmp_path / "traces.parquet").exists()


def test_a_budget_of_the_run_stops_it_too(tmp_path: Path) -> None:
    budget = BudgetConfig(minutes=2 / 60)
    with (
        endpoint(answer(solution, 0.1)) as server,
        pytest.raises(BudgetReached, match="minutes spent"),
        record(tmp_path, "traces", "test", {}, budget=budget) as run,
    ):
        collect(settings(server.url, "tasks=200"), tmp_path, run)
    assert 0 < len(read_traces(tmp_path / "traces.parquet")) < 200
    entry = json.loads((tmp_path / "ledger.json").read_text())
    dollars = read_card(tmp_path / "traces.parquet")["cost"]["endpoint_dollars"]
    assert entry["totals"]["fees"] == pytest.approx(dollars) and entry["totals"]["dollars"] > dollars
    assert entry["status"] == "budget" and entry["stages"][0]["name"] == "traces" and entry["stages"][0]["tokens"] > 0


def test_nothing_verified_is_said_with_the_reasons(tmp_path: Path) -> None:
    with endpoint(say("<answer> 1 + 1 </answer>")) as server:
        with pytest.raises(DataError, match=r"none of 36 answers was verified: \{'wrong_numbers': 36\}") as raised:
            collect(settings(server.url), tmp_path)
        assert raised.value.hint
        with pytest.raises(DataError, match="none of 36"):
            collect(settings(server.url), tmp_path)
    assert len(server.bodies) == 36


def run_process(url: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("collecting.py")
    return subprocess.Popen([sys.executable, str(script), url, str(folder), *more], text=True, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 after so many requests, five times over: nothing answered is asked again, and the same file comes of it."""
    more = ["tasks=40", "max_tokens=60"]
    with endpoint(answer(sometimes)) as server:
        undisturbed = collect(settings(server.url, *more), tmp_path / "a")
        asked = Counter(server.prompts())
    rng, kills = random.Random(1), 0
    with endpoint(raw(b"", 503), answer(sometimes, 0.03)) as server:
        while True:
            seen = len(server.bodies)
            process, wanted = run_process(server.url, tmp_path / "b", *more), seen + rng.randint(1, 25)
            while process.poll() is None and (len(server.bodies) < wanted or kills == 5):
                time.sleep(0.002)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            with (tmp_path / "b" / "answers" / "answers-0.jsonl").open("ab") as torn:
                torn.write(b'{"key": ["0123", 0], "answer": {"te')
        assert process.returncode == 0, process.stderr.read() if process.stderr else ""
        journal = (tmp_path / "b" / "answers" / "answers-0.jsonl").read_text()
        answered = Counter(tuple(line["key"]) for line in map(json.loads, journal.splitlines()) if "answer" in line)
        repeated = Counter(server.prompts()) - asked
        spent = read_card(tmp_path / "b" / "traces.parquet")["cost"]["endpoint_dollars"]
    assert kills == 5 and set(answered.values()) == {1} and sum(answered.values()) == sum(asked.values())
    assert sum(repeated.values()) <= 1 + 4 * kills  # only what was under way: four requests at a time, and the 503
    assert (tmp_path / "b" / "traces.parquet").read_bytes() == undisturbed.read_bytes()
    # what was sent before a kill and never came back is counted as spent
    known = read_card(undisturbed)["cost"]["endpoint_dollars"]
    assert known <= spent <= known + 4 * kills * 0.0012


def test_the_program_says_what_it_made(tmp_path: Path) -> None:
    with endpoint(answer(sometimes)) as server:
        plain = settings(server.url).model_dump()
        config = CollectConfig(**plain, workers=2, budget=BudgetConfig(minutes=5))
        made = run(config, tmp_path, ["agartha", "traces"])
        again = run(config, tmp_path, ["agartha", "traces"])
        assert len(server.bodies) == made["counts"]["answers"]
    assert made["kept"] == again["kept"] == len(read_traces(Path(made["traces"]))) > 0 and made["dollars"] > 0
    entry = json.loads((tmp_path / "ledger.json").read_text())
    assert (entry["program"], entry["status"], len(entry["attempts"])) == ("traces", "finished", 2)
    assert json.loads((tmp_path / "config.json").read_text())["tasks"] == 12
    with pytest.raises(ConfigError, match="there is no teacher"):
        run(CollectConfig(teacher="/nowhere"), tmp_path / "b", [])
    assert not (tmp_path / "b").exists()


def test_the_program_shares_an_engine_between_workers(tmp_path: Path) -> None:
    words = [*map(str, range(100)), *"+-*/=,:", "->", "<answer>", "</answer>"]
    tokenizer = Tokenizer.from_words(words)
    save_model(tmp_path / "model", random_decoder(LATENT | {"vocab_size": 128}), tokenizer, {})
    config = CollectConfig(teacher=str(tmp_path / "model"), tasks=30, attempts=2, max_tokens=8, max_rows=16, workers=2)
    with pytest.raises(DataError, match="none of 120 answers was verified"):
        run(config, tmp_path / "run", ["agartha", "traces"])
    answers = [path.read_text().count('"answer"') for path in sorted((tmp_path / "run" / "answers").iterdir())]
    assert sorted(answers) == [60, 60]
    entry = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert entry["status"] == "failed" and entry["parents"] == [describe_teacher(config)["digest"]]
    assert entry["stages"][0]["tokens"] > 1000 and entry["stages"][0]["model_flops"] > 0


WORDS = ["ask", *(f"w{i}" for i in range(40)), "yes"]


class SayYes(World):
    """Reward 1 for an answer with the word yes."""

    name, levels = "say yes", (1, 2)

    def task(self, seed: int, level: int | None = None) -> Task:
        return Task(self.name, str(seed), f"ask w{seed % 20} w{level} w{seed % 7}", {}, level or 1)

    def in_training(self, task: Task) -> bool:
        return True

    def verify(self, task: Task, completion: str) -> Verdict:
        return Verdict(float("yes" in completion.split()), "judged")


ENGINE = TracesConfig(world="countdown", tasks=100, attempts=6, max_tokens=24, max_rows=16)


def by_engine(parallel: Parallel, folder: str) -> list[Trace]:
    collect_module.load_world = lambda name: SayYes()
    teacher = EngineTeacher.of(random_decoder(TINY | {"vocab_size": 64}), Tokenizer.from_words(WORDS), ENGINE)
    return read_traces(collect(ENGINE, Path(folder), teacher=teacher, parallel=parallel))


def test_workers_share_an_engine_and_the_result_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "load_world", lambda name: SayYes())
    alone = by_engine(Parallel(), str(tmp_path / "alone"))
    assert 20 < len(alone) < 200 and {t.task.level for t in alone} == {1, 2}
    assert all("yes" in t.completion.split() and t.token_ids for t in alone)
    shared = launch(by_engine, 2, str(tmp_path / "shared"))
    assert shared == alone
    assert len(list((tmp_path / "shared" / "answers").glob("*.jsonl"))) == 2
    # what two workers have answered one goes on from, whatever is lost
    (tmp_path / "shared" / "traces.parquet").unlink()
    journal = tmp_path / "shared" / "answers" / "answers-1.jsonl"
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size // 2])
    assert by_engine(Parallel(), str(tmp_path / "shared")) == alone


def test_a_teacher_of_other_weights_does_not_go_on_with_these_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_module, "load_world", lambda name: SayYes())
    by_engine(Parallel(), str(tmp_path))
    tokenizer = Tokenizer.from_words(WORDS)
    other = EngineTeacher.of(random_decoder(TINY | {"vocab_size": 64}, seed=1), tokenizer, ENGINE)
    with pytest.raises(ConfigError, match="holds answers with teacher="):
        collect(ENGINE, tmp_path, teacher=other)


def test_our_own_server_is_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "serve"))
    from live import live  # type: ignore[import-not-found]
    from scripted import served  # type: ignore[import-not-found]

    class Echo(SayYes):
        def task(self, seed: int, level: int | None = None) -> Task:
            return Task(self.name, str(seed), f"/think hm\n/say {'yes' if seed % 3 else 'no'} {seed}", {}, 1)

    monkeypatch.setattr(collect_module, "load_world", lambda name: Echo())
    with live(served()) as server:
        config = settings(f"{server.url}/v1", "endpoint.model=scripted", "levels=[1]", "attempts=1", "max_tokens=200")
        path = collect(config, tmp_path)
    traces, card = read_traces(path), read_card(path)
    assert sorted(t.completion for t in traces) == sorted(
        f"<think>\nhm\n</think>\n\nyes {i}" for i in range(12) if i % 3
    )
    assert card["usage_complaints"]["count"] == 0 and card["counts"]["wrong"] == 4


def test_levels_are_asked_side_by_side_so_that_an_early_end_leaves_some_of_each() -> None:
    config = TracesConfig(world="countdown", tasks=40)
    tasks = draw_tasks(config, COUNTDOWN, frozenset())
    assert tasks == draw_tasks(config, COUNTDOWN, frozenset())
    assert Counter(task.level for task in tasks) == {3: 40, 4: 40}
    for share in (tasks[:20], tasks[0::2], tasks[1::2]):
        assert min(Counter(task.level for task in share)[level] for level in (3, 4)) > len(share) / 5
