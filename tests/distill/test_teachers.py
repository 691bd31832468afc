"""Teachers: an endpoint that misbehaves in every way we know of, and our own engine."""

import errno
import gzip
import json
import math
import os
import random
import re
import signal
import threading
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_endpoint import (
    Act,
    answer,
    babble,
    bad_chunks,
    completion,
    cut_off,
    drip,
    endpoint,
    flood,
    hang,
    raw,
    reset,
    say,
    swollen_head,
)
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, random_decoder

from agartha.core.config import load
from agartha.core.errors import BudgetReached, CapacityError, ConfigError, DataError, Interrupted
from agartha.distill import endpoint as endpoint_module
from agartha.distill.book import Answer, Book, Question
from agartha.distill.config import TracesConfig
from agartha.distill.endpoint import EndpointTeacher
from agartha.distill.purse import losses, spent_before
from agartha.distill.reply import account, read_reply
from agartha.distill.teachers import EngineTeacher, describe_teacher, open_teacher, weights_digest
from agartha.distill.wire import retry_after
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.countdown import Countdown, problem
from agartha.worlds.types import Task

PRICED = {"input_price": 1.0, "output_price": 10.0}
KEY = "sk-very-secret-123"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


def settings(url: str, max_tokens: int = 100, **more: Any) -> TracesConfig:
    plain = {
        "url": url,
        "model": "teacher-1",
        "requests_per_minute": 60_000,
        "timeout_s": 5,
        "key_variable": "TEACHER_KEY",
    }
    return TracesConfig(endpoint=plain | more, max_tokens=max_tokens)  # type: ignore[arg-type]


def questions(count: int) -> list[Question]:
    return [Question(Task("toy", str(i), f"question {i}?"), 0) for i in range(count)]


def book_in(folder: Path, **more: Any) -> Book:
    return Book(folder / "answers", {"how": "test"}, **more)


def ask(folder: Path, *acts: Act, count: int = 1, max_tokens: int = 100, **more: Any) -> tuple[list[Answer], Book, Any]:
    with endpoint(*acts) as server, book_in(folder) as book:
        EndpointTeacher(settings(server.url, max_tokens, **more)).ask(questions(count), book)
        return list(book.answers.values()), book, server


def test_answers_come_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    got, book, server = ask(tmp_path, say("fine", system_fingerprint="fp_1"), count=3, concurrency=1, **PRICED)
    assert len(got) == 3
    for one in got:
        assert replace(one, ticket=None) == Answer("fine", None, 5, 1, "stop", "teacher-1", "fp_1", 15e-6)
    body = server.bodies[0]
    assert body["model"] == "teacher-1" and body["max_tokens"] == 100 and body["stream"] is False
    assert body["messages"] == [{"role": "user", "content": "question 0?"}]
    assert len({body["seed"] for body in server.bodies}) == 3
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert spent_before(book) == pytest.approx(45e-6)


def test_requests_are_as_the_settings_say(tmp_path: Path) -> None:
    more = {"max_tokens_field": "max_completion_tokens", "send_seed": False, "extra": {"reasoning_effort": "low"}}
    _, _, server = ask(tmp_path, say(), **more)
    body = server.bodies[0]
    assert body["max_completion_tokens"] == 100 and body["reasoning_effort"] == "low"
    assert "seed" not in body and "max_tokens" not in body


def test_solved_examples_are_shown_as_earlier_turns(tmp_path: Path) -> None:
    with endpoint(say()) as server, book_in(tmp_path) as book:
        config = settings(server.url).model_copy(update={"examples": 2, "system": "Be brief."})
        open_teacher(config, world := Countdown(), torch.device("cpu")).ask(questions(1), book)
    roles = [message["role"] for message in server.bodies[0]["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    for asked, replied in zip(server.bodies[0]["messages"][1:5:2], server.bodies[0]["messages"][2:5:2]):
        numbers, target = asked["content"].removesuffix(" :").split(" -> ")
        assert world.verify(problem([int(n) for n in numbers.split()], int(target)), replied["content"]).passed


@pytest.mark.parametrize(
    ("fields", "text", "finish"),
    [
        ({}, "answer", "stop"),
        ({"message": {"reasoning_content": " because\n"}}, "<think>\nbecause\n</think>\n\nanswer", "stop"),
        ({"message": {"reasoning": "because"}}, "<think>\nbecause\n</think>\n\nanswer", "stop"),
        ({"message": {"reasoning_content": "because", "content": "<think>b</think> a"}}, "<think>b</think> a", "stop"),
        ({"message": {"reasoning_content": "because", "content": None}}, "<think>\nbecause\n</think>\n\n", "stop"),
        ({"message": {"content": None}}, "", "stop"),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, "", "content_filter"),
        ({"finish_reason": "length"}, "answer", "length"),
        ({"finish_reason": "eos"}, "answer", "stop"),
        ({"message": {"content": "half \ud83d pair"}}, "half ? pair", "stop"),
    ],
)
def test_what_is_paid_for_is_kept_as_it_came(tmp_path: Path, fields: dict, text: str, finish: str) -> None:
    got, _, server = ask(tmp_path, say("answer", **fields))
    assert (got[0].text, got[0].finish, len(server.bodies)) == (text, finish, 1)


BROKEN = {
    "a time-out": (hang(0.6), "no answer within 0.3 s"),
    "a byte now and then": (drip, "no answer within 0.3 s"),
    "cut off": (cut_off, "the connection broke"),
    "reset": (reset, "the connection broke"),
    "no JSON": (raw(b"<html>\x1b[31mHello"), "no JSON: .* it begins '<html> "),
    "half of it": (raw(json.dumps(completion()).encode()[:-9]), "no JSON"),
    "deep nesting": (raw(b"[" * 100_000), "no JSON"),
    "a long number": (raw(b'{"choices": ' + b"9" * 10_000 + b"}"), "no JSON"),
    "not UTF-8": (raw(b'{"choices": "\xff\xfe"}'), "no JSON"),
    "empty": (raw(b""), "no JSON"),
    "a list": (raw(b"[]"), "the body is list"),
    "an error as success": (raw(b'{"error": {"message": "overloaded"}}'), "an error: .*overloaded"),
    "no choices": (raw(b"{}"), "choices of type NoneType"),
    "empty choices": (raw(b'{"choices": []}'), "choices is empty"),
    "odd choices": (raw(b'{"choices": [3]}'), r"choices\[0\] is int"),
    "no message": (raw(b'{"choices": [{"finish_reason": "stop"}]}'), "message of type NoneType"),
    "no finish_reason": (say(finish_reason=None), "finish_reason of type NoneType"),
    "content of numbers": (say([1, 2]), "content is list"),
    "odd reasoning": (say(message={"reasoning_content": {"a": 1}}), "reasoning_content is dict"),
    "too much": (raw(b"x" * (2**20 + 7000)), "more than 1054976 bytes"),
    "no HTTP": (babble, "the connection broke"),
    "odd chunks": (bad_chunks, "the connection broke"),
    "headers without end": (swollen_head, "the connection broke"),
    "compressed unasked": (raw(gzip.compress(b"x" * 10**7), content_encoding="gzip"), "no JSON"),
    "without end": (flood, "more than 1054976 bytes"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_asked_for_again_and_counted_as_paid(tmp_path: Path, name: str) -> None:
    act, reason = BROKEN[name]
    got, book, server = ask(tmp_path, act, say("fine"), timeout_s=0.3, **PRICED)
    assert [a.text for a in got] == ["fine"] and len(server.bodies) == 2
    assert len(losses(book.notes)) == 1 and re.search(reason, losses(book.notes)[0])
    assert losses(book.notes)[0].isprintable()
    worst = (len(json.dumps(server.bodies[0])) + 256 + 100 * 10) / 1e6
    assert spent_before(book) == pytest.approx(worst + got[0].dollars)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_a_refusal_for_now_is_tried_again_and_costs_nothing(tmp_path: Path, status: int) -> None:
    got, book, server = ask(tmp_path, raw(b"later", status), raw(b"later", status), say("fine"), **PRICED)
    assert [a.text for a in got] == ["fine"] and len(server.bodies) == 3
    assert spent_before(book) == got[0].dollars


def test_tries_are_spaced_more_and_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.1)
    _, _, server = ask(tmp_path, *[raw(b"", 503)] * 3, say())
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:])]
    for number, gap in enumerate(gaps):
        assert 0.05 * 2**number <= gap <= 0.1 * 2**number + 0.5, gaps


def test_retry_after_holds_everybody_back(tmp_path: Path) -> None:
    _, _, server = ask(tmp_path, raw(b"", 429, retry_after="0.6"), say(), count=20, concurrency=1)
    assert server.times[1] - server.times[0] >= 0.6
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < retry_after(soon) < 91  # type: ignore[operator]
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after(text) for text in (None, "", "soon", "nan", "inf", "-3", "7")] == [None] * 5 + [0.0, 7.0]


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="asks to wait 99999999 s, the limit is 600"):
        ask(tmp_path, raw(b"", 429, retry_after="99999999"), say())


def test_an_endpoint_that_never_answers_ends_the_run(tmp_path: Path) -> None:
    with endpoint(raw(b"no", 503)) as server, book_in(tmp_path) as book:
        teacher = EndpointTeacher(settings(server.url, max_retries=1, concurrency=2))
        with pytest.raises(DataError, match=r"left 10 questions in a row unanswered, .* status 503: no") as raised:
            teacher.ask(questions(500), book)
        assert raised.value.hint and 20 <= len(server.bodies) <= 24
        with pytest.raises(DataError, match="left 3 questions"):
            teacher.ask(questions(3), book)
    with book_in(tmp_path) as book, pytest.raises(DataError, match="no connection"):
        EndpointTeacher(settings("http://127.0.0.1:9/v1", max_retries=0, **PRICED)).ask(questions(2), book)
    assert spent_before(book) == 0


def test_a_question_that_is_refused_is_left_out(tmp_path: Path) -> None:
    def picky(body: dict, handler: Any) -> tuple[int, dict, bytes]:
        if "question 3?" in body["messages"][-1]["content"]:
            return 400, {}, b'{"error": {"message": "too long"}}'
        return say()(body, handler)  # type: ignore[return-value]

    got, book, server = ask(tmp_path, picky, count=6)
    assert len(got) == 5 and len(server.bodies) == 6 and "too long" in losses(book.notes)[0]


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "key_variable"), (402, "money"), (403, "may this key"), (404, "/v1"), (302, "OpenAI-compatible")],
)
def test_what_cannot_get_better_stops_at_once(tmp_path: Path, status: int, hint: str) -> None:
    with endpoint(say()) as other, pytest.raises(ConfigError, match=f"status {status}: no") as raised:
        ask(tmp_path, raw(b"no", status, location=f"{other.url}/chat/completions"), count=5, concurrency=1)
    assert hint in str(raised.value.hint) and not other.bodies  # a redirection would carry the key elsewhere


def test_the_key_is_written_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    echo = say(f"you sent {KEY}", message={"reasoning_content": KEY}, model=f"m {KEY}", system_fingerprint=KEY)
    got, _, _ = ask(
        tmp_path, raw(f"bad key {KEY}".encode(), 500), raw(f'{{"error": "{KEY}"}}'.encode()), raw(KEY.encode()), echo
    )
    assert "[key]" in got[0].text
    with pytest.raises(ConfigError) as raised:
        ask(tmp_path / "b", raw(f"bad key {KEY}".encode(), 401))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert (
        KEY.encode() not in written and KEY not in str(raised.value) and KEY not in caplog.text and KEY not in repr(got)
    )


def test_a_missing_or_odd_key_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("http://127.0.0.1:9/v1")
    for value, message in (("", "TEACHER_KEY is not set"), ("a\nb", "characters that no API key"), ("ä", "no API key")):
        monkeypatch.setenv("TEACHER_KEY", value)
        with pytest.raises(ConfigError, match=message):
            open_teacher(config, Countdown(), torch.device("cpu"))
    assert describe_teacher(config)["model"] == "teacher-1"  # needs no key


@pytest.mark.parametrize(
    ("usage", "prompt", "completion_tokens", "complaint"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 90}, 7, 90, None),
        (None, 3, 100, "no usable count of prompt tokens, 3 are booked; no usable count of completion tokens"),
        ("free", 3, 100, "no usable count"),
        ({"prompt_tokens": 7}, 7, 100, "no usable count of completion tokens, 100 are booked"),
        ({"prompt_tokens": -7, "completion_tokens": -90}, 3, 100, "no usable count of prompt"),
        ({"prompt_tokens": 7, "completion_tokens": 1}, 7, 100, "1 completion tokens are said to hold 399 characters"),
        ({"prompt_tokens": 0, "completion_tokens": 90}, 3, 90, "0 prompt tokens are said to hold 11 characters"),
        (
            {"prompt_tokens": 7, "completion_tokens": 5000},
            7,
            5000,
            "5000 completion tokens are said, at most 200 can be",
        ),
        ({"prompt_tokens": 10**6, "completion_tokens": 90}, 10**6, 90, "1000000 prompt tokens are said, at most"),
        ({"prompt_tokens": 7, "completion_tokens": 10**40}, 7, 100, "no usable count of completion"),
        ({"prompt_tokens": True, "completion_tokens": 9.5}, 3, 100, "no usable count"),
        ({"prompt_tokens": "7", "completion_tokens": "90"}, 3, 100, "no usable count"),
    ],
)
def test_a_teacher_that_lies_about_usage_is_named_and_the_larger_value_booked(
    tmp_path: Path, usage: Any, prompt: int, completion_tokens: int, complaint: str | None
) -> None:
    got, book, _ = ask(tmp_path, say("abc " * 100, usage=usage), max_tokens=200, **PRICED)
    assert (got[0].prompt_tokens, got[0].completion_tokens) == (prompt, completion_tokens)
    assert got[0].complaint is None if complaint is None else complaint in str(got[0].complaint)
    assert spent_before(book) == pytest.approx((prompt + completion_tokens * 10) / 1e6)


FIELDS = ["choices", "message", "content", "usage", "finish_reason", "reasoning_content", "model", "error"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS), inner))


@given(VALUES)
def test_any_json_is_a_reply_or_refused(value: Any) -> None:
    for body in (
        value,
        {"choices": [value]},
        {"choices": [{"message": value, "finish_reason": "stop"}], "usage": value},
    ):
        try:
            reply = read_reply(json.dumps(body).encode())
        except DataError:
            continue
        prompt, tokens, _ = account(reply, "question", 10)
        assert prompt >= 0 and tokens >= 0
        json.dumps(asdict(reply), allow_nan=False).encode()


def test_no_request_is_sent_that_could_pass_the_limit(tmp_path: Path) -> None:
    with (
        endpoint(answer(lambda _: "x" * 400, 0.02, usage={"prompt_tokens": 5, "completion_tokens": 100})) as server,
        book_in(tmp_path) as book,
    ):
        teacher = EndpointTeacher(settings(server.url, concurrency=8, dollars=0.0205, **PRICED))
        with pytest.raises(BudgetReached, match=r"dollars are spent on the teacher .* the limit is 0.0205") as raised:
            teacher.ask(questions(100), book)
        assert "endpoint.dollars" in str(raised.value.hint)
        spent, size = spent_before(book), len(teacher.body(questions(1)[0]))
    worst, real = (size + 2 + 256 + 1000) / 1e6, 1005e-6
    assert 0.0205 - worst - real <= spent <= 0.0205  # as much as can be had, and not more
    assert len(book.answers) == round(spent / real) and len(server.bodies) == len(book.answers)
    assert server.most_running > 1


def test_the_limit_counts_what_was_spent_before_a_kill(tmp_path: Path) -> None:
    with endpoint(say()) as server, book_in(tmp_path) as book:
        teacher = EndpointTeacher(settings(server.url, dollars=0.01, **PRICED))
        teacher.ask(questions(2), book)
        before = spent_before(book)
        book.note({"sent": "ticket of a request that a kill cut short", "dollars": 0.009}, durable=False)
    with endpoint(say()) as server, book_in(tmp_path) as again:
        assert spent_before(again) == pytest.approx(before + 0.009)
        with pytest.raises(BudgetReached):
            EndpointTeacher(settings(server.url, dollars=0.01, **PRICED)).ask(questions(5), again)
        assert not server.bodies


def test_an_endpoint_that_bills_more_than_it_may_is_stopped(tmp_path: Path) -> None:
    greedy = say("fine", usage={"prompt_tokens": 5, "completion_tokens": 10**8})
    with endpoint(say("fine"), greedy) as server, book_in(tmp_path) as book:
        teacher = EndpointTeacher(settings(server.url, concurrency=1, dollars=1, **PRICED))
        with pytest.raises(BudgetReached, match=r"1000\.\d+ dollars are spent"):
            teacher.ask(questions(9), book)
    assert len(book.answers) == 2 and "at most 100 can be" in str(list(book.answers.values())[-1].complaint)


@pytest.mark.parametrize("change", [{"model": "teacher-2"}, {"system_fingerprint": "fp_2"}])
def test_a_model_that_changes_midway_stops_the_run_and_keeps_everything(tmp_path: Path, change: dict) -> None:
    first, other = say("a", system_fingerprint="fp_1"), say("b", **{"system_fingerprint": "fp_1"} | change)
    with endpoint(first, first, say("unsaid", model=None), other) as server, book_in(tmp_path) as book:
        teacher = EndpointTeacher(settings(server.url, concurrency=1))
        with pytest.raises(DataError, match=r"answers as model 'teacher-.*before it was 'teacher-1', 'fp_1'") as raised:
            teacher.ask(questions(9), book)
        assert "allow_model_change" in str(raised.value.hint)
    assert [a.text for a in book.answers.values()] == ["a", "a", "unsaid", "b"] and len(server.bodies) == 4
    with endpoint(other) as server, book_in(tmp_path) as again:
        with pytest.raises(DataError, match="before it was"):
            EndpointTeacher(settings(server.url)).ask(questions(9)[4:], again)
        assert not server.bodies
        EndpointTeacher(settings(server.url, allow_model_change=True)).ask(questions(9)[4:], again)
        assert len(again.answers) == 9


def test_requests_run_side_by_side_but_not_too_many(tmp_path: Path) -> None:
    began = time.monotonic()
    got, _, server = ask(tmp_path, answer(str.upper, 0.1), count=40, concurrency=10)
    assert 2 < server.most_running <= 10 and time.monotonic() - began < 3
    assert {a.text for a in got} == {f"QUESTION {i}?" for i in range(40)}


def test_requests_keep_the_pace(tmp_path: Path) -> None:
    _, _, server = ask(tmp_path, say(), count=11, concurrency=8, requests_per_minute=1200)
    assert server.times[-1] - server.times[0] >= 0.45  # ten gaps of 50 ms


def test_ctrl_c_lets_what_is_under_way_come_in(tmp_path: Path) -> None:
    with endpoint(answer(str.upper, 0.5)) as server, book_in(tmp_path) as book:
        teacher = EndpointTeacher(settings(server.url, concurrency=4))

        def interrupt() -> None:
            while len(server.bodies) < 4:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(Interrupted):
            teacher.ask(questions(100), book)
    assert len(book.answers) == len(server.bodies) == 4


def test_a_torn_line_is_dropped_and_a_damaged_one_named(tmp_path: Path) -> None:
    pairs = [(q, Answer(f"answer é {q.task.id}", None, 1, 2, "stop", "t")) for q in questions(5)]
    with book_in(tmp_path) as book:
        book.keep(pairs)
        book.note({"lost": "t", "dollars": 1.0, "reason": "r"})
    whole = book.path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 60):
        book.path.write_bytes(whole[:cut])
        with book_in(tmp_path) as again:
            known = len(again.answers)
            assert known == max(0, whole[:cut].count(b"\n") - 1) or (known == 5 and again.notes)
            again.keep(pairs[known:])
        with book_in(tmp_path) as healed:
            assert list(healed.answers.values()) == [a for _, a in pairs]
    lines = whole.splitlines(keepends=True)
    for damage in (
        lines[2][:-20] + b"\n",
        b"\0" * 50 + b"\n",
        b'{"key": ["a", 0], "answer": {"text": 3}}\n',
        b'{"answer": 1}\n',
        b'{"sent": []}\n',
    ):
        book.path.write_bytes(b"".join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(DataError, match=r"line 3 is (damaged|no answer|no note)"):
            book_in(tmp_path)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, 700

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, data[:room])
        room -= done
        return done

    with endpoint(say("fine")) as server, book_in(tmp_path) as book:
        monkeypatch.setattr("agartha.distill.book.os.write", write)
        with pytest.raises(CapacityError, match="No space left"):
            EndpointTeacher(settings(server.url, concurrency=1)).ask(questions(9), book)
        assert room == 0
    monkeypatch.setattr(os, "write", real)
    kept = book.path.read_bytes()
    assert kept.endswith(b"}\n") and kept.count(b"\n") == 1 + len(book.answers) >= 2
    with book_in(tmp_path) as again:
        assert again.answers == book.answers


def test_answers_got_in_another_way_are_not_mixed(tmp_path: Path) -> None:
    book_in(tmp_path).close()
    with pytest.raises(ConfigError, match=r"holds answers with how='test', now it is 'else'"):
        Book(tmp_path / "answers", {"how": "else"})


WORDS = ["ask", *(f"w{i}" for i in range(12)), "yes"]


def engine_teacher(**changes: Any) -> EngineTeacher:
    config = TracesConfig(max_tokens=12, max_rows=changes.pop("max_rows", 8), **changes)
    return EngineTeacher.of(random_decoder(TINY | {"vocab_size": 32}), Tokenizer.from_words(WORDS), config)


def asked(count: int) -> list[Question]:
    return [Question(Task("toy", str(i), f"ask w{i % 12} w{i % 5}"), i % 3) for i in range(count)]


def test_our_engine_answers_the_same_whatever_is_asked_beside_it(tmp_path: Path) -> None:
    every, answers = asked(60), []
    for rows, portion in ((8, 60), (3, 7), (64, 1)):
        teacher = engine_teacher(max_rows=rows)
        assert len(teacher.askable([q.task for q in every])) == 60
        with Book(tmp_path / f"{rows}", {}) as book:
            for first in range(0, 60, portion):
                teacher.ask(every[first : first + portion], book)
        answers.append([book.answers[q.key] for q in every])
    assert answers[0] == answers[1] == answers[2]
    one = answers[0][0]
    assert one.token_ids is not None and one.completion_tokens == len(one.token_ids) <= 12
    assert one.prompt_tokens == 3 and one.teacher == "model" and one.dollars is None
    assert len({a.text for a in answers[0]}) > 30
    assert teacher.flops(answers[0]) > 0


def test_a_cut_off_answer_of_our_engine_says_so(tmp_path: Path) -> None:
    teacher, every = engine_teacher(), asked(40)
    teacher.askable([q.task for q in every])
    with Book(tmp_path, {}) as book:
        teacher.ask(every, book)
    eos = teacher.prompts.stop_ids[0]
    for one in book.answers.values():
        assert one.finish == ("stop" if one.token_ids[-1] == eos else "length")  # type: ignore[index]
        assert "<eos>" not in one.text


def test_tasks_that_cannot_be_put_to_a_model_are_left_out(tmp_path: Path) -> None:
    teacher = engine_teacher()
    known, unknown = Task("toy", "0", "ask w1"), Task("toy", "1", "ask Goethe")
    long = Task("toy", "2", "ask " * 10_000)
    assert teacher.askable([known, unknown, long]) == [known] and teacher.askable([]) == []
    with pytest.raises(DataError, match=r"no task can be put to model: .*Goethe"):
        teacher.askable([unknown])


def test_the_mode_of_a_decoder_in_use_is_left_as_it_was(tmp_path: Path) -> None:
    teacher = engine_teacher()
    teacher.decoder.train()
    before = weights_digest(teacher.decoder)
    teacher.askable([asked(1)[0].task])
    with Book(tmp_path, {}) as book:
        teacher.ask(asked(1), book)
    assert teacher.decoder.training and weights_digest(teacher.decoder) == before
    with torch.no_grad():
        next(teacher.decoder.parameters()).view(-1)[0] += 1
    assert weights_digest(teacher.decoder) != before


def test_settings_that_cannot_work_are_refused() -> None:
    for override, message in {
        "endpoint.url=ftp://x/v1": "must be an address", "endpoint.url=https://me:pw@x/v1": "without a name",
        "endpoint.dollars=3": "needs input_price and output_price", 'endpoint.extra={model="x"}': "decided elsewhere",
        "endpoint.timeout=3": "did you mean 'endpoint.timeout_s'", "per_task=9": "more than attempts",
        "teacher=x": "one must be", "temperature=nan": "temperature",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            load(TracesConfig, None, ["endpoint.url=https://x/v1", "endpoint.model=m", override])
    with pytest.raises(ConfigError, match="no teacher is named"):
        open_teacher(TracesConfig(), Countdown(), torch.device("cpu"))
    with pytest.raises(ConfigError, match="there is no teacher"):
        describe_teacher(TracesConfig(teacher="/nowhere"))
    assert math.isclose(settings("http://x/v1/chat/completions").endpoint.timeout_s, 5)  # type: ignore[union-attr]
    assert settings("http://x/v1/chat/completions/").endpoint.url == "http://x/v1"  # type: ignore[union-attr]
