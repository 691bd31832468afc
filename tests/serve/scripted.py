"""An engine that says what the user's message tells it to: real ids, rows, queue and timing, no model.

Words of the last user message, each at the start of a line:
    /think TEXT   think this first        /say TEXT    say this (to the end of the message; default: an echo)
    /call JSON    call a tool so          /slow MS     wait so long before each token
    /fail         give the reply up       /numbers     logits that are not finite      /crash   the engine's loop dies
"""

import re
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import AddedToken

from agartha.core.errors import DataError, NumericsError
from agartha.engine.request import Event, Request, Stats
from agartha.serve.served import Served
from agartha.serve.worker import Worker
from agartha.text.tokenizer import Tokenizer

TAGS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}Tools: {{ tools | tojson }} Call as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}{% for m in messages %}{% if not (tools and loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endif %}
{{- m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""
WORDS = ["the quick brown fox jumps over the lazy dog", "You said: hello", "def f(x): return x", "naïve café 🙂 漢字"]


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.train(WORDS * 3, 400)
    tokenizer.backend.add_special_tokens([AddedToken(tag, special=True) for tag in TAGS[:2]])
    tokenizer.backend.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS[2:]])
    return Tokenizer(tokenizer.backend, eos="<|im_end|>", pad="<pad>")


@dataclass(slots=True)
class Row:
    number: int
    index: int
    request: Request
    reply: list[int]
    wait_s: float
    ending: str
    said: int = 0


@dataclass
class ScriptedEngine:
    """As `engine.Engine` to the server. `delay_s`: how long a step takes."""

    tokenizer: Tokenizer = field(default_factory=make_tokenizer)
    max_rows: int = 4
    max_length: int = 4096
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        self.rows: list[Row] = []
        self.waiting: deque[Row] = deque()
        self.numbers = self.steps = self.prompt_tokens = self.generated = 0
        self.requests: list[Request] = []  # all that ever came

    @property
    def has_work(self) -> bool:
        return bool(self.rows or self.waiting)

    def add(self, request: Request) -> int:
        if not request.prompt_ids:
            raise DataError("the prompt is empty.", hint="give at least one token.")
        self.numbers += 1
        self.prompt_tokens += len(request.prompt_ids)
        self.requests.append(request)
        self.waiting.extend(self._row(request, index) for index in range(request.n))
        return self.numbers

    def step(self) -> list[Event]:
        while self.waiting and len(self.rows) < self.max_rows:
            self.rows.append(self.waiting.popleft())
        if not self.rows:
            return []
        time.sleep(max(self.delay_s, *(row.wait_s for row in self.rows)))
        if any(row.ending == "crash" for row in self.rows):
            raise MemoryError("scripted")
        if any(row.ending == "numbers" for row in self.rows):
            raise NumericsError("the logits of 1 of 1 rows are not finite.")
        self.steps += 1
        events = [self._event(row) for row in self.rows]
        self.rows = [row for row, event in zip(self.rows, events) if event.finish is None]
        return events

    def abort(self, request: int) -> None:
        self.rows = [row for row in self.rows if row.number != request]
        self.waiting = deque(row for row in self.waiting if row.number != request)

    def embed(self, prompts: Sequence[Sequence[int]], adapter: str = "") -> np.ndarray:
        made = np.array([np.bincount(np.asarray(ids) % 8, minlength=8) for ids in prompts], np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def stats(self) -> Stats:
        held = sum(len(row.request.prompt_ids) + row.said for row in self.rows) // 16 + len(self.rows)
        blocks = self.max_rows * self.max_length // 16
        return Stats(
            len(self.waiting),
            len(self.rows),
            blocks,
            held,
            0,
            self.steps,
            self.prompt_tokens,
            0,
            self.generated,
            0,
            0,
            0,
        )

    def _row(self, request: Request, index: int) -> Row:
        prompt = self.tokenizer.decode(request.prompt_ids)
        turns = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
        asked = turns[-1] if turns else prompt
        reply, wait_s, ending = script(asked, request, index)
        ids = [*self.tokenizer.encode(reply), self.tokenizer.eos_id]
        return Row(self.numbers, index, request, ids, wait_s, ending)

    def _event(self, row: Row) -> Event:
        how = row.request.sampling
        token = row.reply[row.said]
        row.said += 1
        self.generated += 1
        finish = "stop" if token in how.stop_ids else "length" if row.said >= how.max_tokens else None
        if row.said == len(row.reply):
            finish = finish or "stop"
        failed = row.ending == "fail" and row.said == 3
        tops = [[(token, -0.25), *((i, -2.0 - i) for i in range(how.top_logprobs - 1))]] if how.top_logprobs else None
        return Event(
            row.number, row.index, [token], [-0.25], tops, "error" if failed else finish,
            error="the guide gave up (scripted)." if failed else None,
        )  # fmt: skip


def script(asked: str, request: Request, index: int) -> tuple[str, float, str]:
    """What to say, how long to wait before each token, and how to fail."""
    slow = re.search(r"^/slow (\d+)", asked, re.MULTILINE)
    ending = re.search(r"^/(fail|crash|numbers)$", asked, re.MULTILINE)
    thought = re.search(r"^/think (.*)$", asked, re.MULTILINE)
    said = re.search(r"^/say (.*)", asked, re.MULTILINE | re.DOTALL)
    calls = re.findall(r"^/call (.*)$", asked, re.MULTILINE)
    how = request.sampling
    drawn = "" if how.temperature == 0 else f" ({(how.seed * 7919 + index * 31) % 1000})"
    text = said[1] if said else "" if calls else f"You said: {asked}{drawn}"
    text = (f"<think>\n{thought[1]}\n</think>\n\n" if thought else "") + text
    text += "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)
    return text, int(slow[1]) / 1000 if slow else 0.0, ending[1] if ending else ""


@dataclass(frozen=True)
class Opened:
    tokenizer: Tokenizer
    template: str | None = TEMPLATE
    digest: str = "sha256:" + "5c" * 32
    defaults: dict = field(default_factory=dict)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.tokenizer.eos_id,)


def served(name: str = "scripted", queue_limit: int = 8, **engine: object) -> Served:
    made = ScriptedEngine(**engine)  # type: ignore[arg-type]
    return Served.of(name, Opened(made.tokenizer), Worker(made, queue_limit))
