"""A teacher behind any OpenAI-compatible endpoint, which may be slow, broken, greedy or a liar.

Many requests are under way at once, begun at a steady pace. Every answer is in the book before the next thing happens. A
time-out, a refusal for now or an answer that cannot be read is tried again, later and later; what cannot get better stops
everything, and so does the limit of money. Requests under way then come to their end, since they are paid for.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

from agartha.core.errors import DataError, Interrupted
from agartha.distill.book import Answer, Book, Question
from agartha.distill.config import EndpointConfig, TracesConfig
from agartha.distill.purse import Purse
from agartha.distill.reply import Reply, account
from agartha.distill.wire import Again, Refused, Wire
from agartha.worlds.types import Task

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0  # between tries, unless the endpoint says how long
PATIENCE_S = 600.0  # the longest wait an endpoint may ask for
GIVE_UP = 10  # questions in a row that get no answer
Examples = tuple[tuple[str, str], ...]
"""Prompts and replies that are shown as earlier turns."""
OVERHEAD = 256  # tokens of chat template beyond the bytes of what is sent


class EndpointTeacher:
    """Asks as `config` says. Raises: ConfigError if httpx2 or the API key is missing."""

    def __init__(self, config: TracesConfig, examples: Examples = ()) -> None:
        assert config.endpoint is not None
        self.config, self.endpoint = config, config.endpoint
        self.name, self.examples = self.endpoint.model, examples
        self.wire = Wire(self.endpoint, config.max_tokens)
        self.next_start = 0.0
        """When the next request may begin, by the monotonic clock."""

    @property
    def portion(self) -> int:
        """How many questions to ask at once: some minutes' worth."""
        endpoint = self.endpoint
        return max(endpoint.concurrency, min(64 * endpoint.concurrency, int(10 * endpoint.requests_per_minute)))

    def describe(self) -> dict[str, Any]:
        """What decides its answers."""
        return describe_endpoint(self.endpoint)

    def askable(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of the tasks that can be put to it: all, as far as is known."""
        return list(tasks)

    def ask(self, questions: Sequence[Question], book: Book) -> None:
        """Get answers into the book; a question the endpoint refuses, or fails on again and again, gets none.

        Raises: BudgetReached, Interrupted, ConfigError for a key or address that is wrong, DataError for an endpoint that
        does not answer any more or answers as another model than before.
        """
        problem = asyncio.run(_Errand(self, questions, book).run())
        if problem is not None:
            raise problem

    def flops(self, answers: Sequence[Answer]) -> float:
        """Not ours to know."""
        return 0.0

    def body(self, question: Question) -> bytes:
        """The request. ASCII, so that its size bounds the tokens of any prompt in it."""
        config, endpoint = self.config, self.endpoint
        system = [("system", config.system)] if config.system is not None else []
        shown = [turn for asked, replied in self.examples for turn in (("user", asked), ("assistant", replied))]
        turns = [*system, *shown, ("user", question.task.prompt)]
        messages = [{"role": role, "content": text} for role, text in turns]
        how = {"temperature": config.temperature, "top_p": config.top_p, endpoint.max_tokens_field: config.max_tokens}
        seed = {"seed": question.seed % 2**31} if endpoint.send_seed else {}
        body = endpoint.extra | {"model": endpoint.model, "messages": messages, "stream": False} | how | seed
        return json.dumps(body).encode()


def describe_endpoint(endpoint: EndpointConfig) -> dict[str, Any]:
    """What decides the answers of a teacher there."""
    return {"endpoint": endpoint.url, "model": endpoint.model, "extra": endpoint.extra, "seeded": endpoint.send_seed}


class _Errand:
    """One call of `ask`: workers that share an iterator of questions, until it is empty or there is a problem."""

    def __init__(self, teacher: EndpointTeacher, questions: Sequence[Question], book: Book) -> None:
        self.teacher, self.endpoint, self.book = teacher, teacher.endpoint, book
        self.questions: Iterator[Question] = iter(questions)
        self.asked = len(questions)
        prices = (self.endpoint.input_price, self.endpoint.output_price)
        self.purse = Purse(book, prices, self.endpoint.dollars)
        self.problem: BaseException | None = None
        self.failures: list[str] = []
        """Why questions got no answer, since the last answer."""
        self.first: tuple[str | None, str | None] = (None, None)
        """Model and build of the first answer."""

    async def run(self) -> BaseException | None:
        self.stopping, self.settled = asyncio.Event(), asyncio.Event()
        async with self.teacher.wire.open():
            number = min(self.asked, self.endpoint.concurrency)
            workers = [asyncio.create_task(self._work()) for _ in range(number)] if self._is_unchanged() else []
            try:
                await self._all(workers)
            except asyncio.CancelledError:  # Ctrl-C; what is under way comes in first, a second one leaves at once
                self._stop(
                    Interrupted(
                        "asking the teacher was interrupted; all answers are kept.",
                        hint="the same command goes on from there.",
                    )
                )
                await self._all(workers)
        if not self.problem and len(self.failures) == self.asked:
            self.problem = self._unanswered()
        return self.problem

    async def _all(self, workers: list[asyncio.Task[None]]) -> None:
        if workers:
            await asyncio.wait(workers)

    async def _work(self) -> None:
        for question in self.questions:
            if self.problem:
                return
            try:
                await self._put(question)
            except Exception as error:
                return self._stop(error)

    async def _put(self, question: Question) -> None:
        """One question, until it is answered or given up."""
        body, reason = self.teacher.body(question), ""
        for number in range(1 + self.endpoint.max_retries):
            ticket = await self._start(len(body))
            if ticket is None:
                return
            try:
                return self._received(question, ticket, await self._send(body, ticket))
            except Refused as error:
                return self._failed(str(error))
            except Again as error:
                reason = error.reason
                if not await self._wait(self._pause(error, number)):
                    return
        self._failed(reason)

    async def _start(self, size: int) -> str | None:
        """Set the money aside and wait for this request's turn; None if everything stops meanwhile."""
        self.book.check()
        worst = self.purse.price(size + OVERHEAD, self.teacher.config.max_tokens) or 0.0
        while not self.problem and not self.purse.has_room(worst):
            await self.settled.wait()
        if self.problem:
            return None
        ticket = self.purse.hold(worst)
        if await self._turn():
            self.purse.sending(ticket)
            return ticket
        self.purse.give_back(ticket)
        return None

    async def _turn(self) -> bool:
        """Wait until the pace allows another request; False if everything stops meanwhile."""
        teacher = self.teacher
        while (wait := teacher.next_start - time.monotonic()) > 0:
            if not await self._wait(wait):
                return False
        teacher.next_start = time.monotonic() + 60 / self.endpoint.requests_per_minute
        return self.problem is None

    async def _send(self, body: bytes, ticket: str) -> Reply:
        """Raises: as `Wire.send`; the money is settled then."""
        try:
            return await self.teacher.wire.send(body)
        except Exception as error:
            self.purse.lose(ticket, isinstance(error, Again) and error.may_be_billed, str(error)[:300])
            self._settle()
            raise

    def _received(self, question: Question, ticket: str, reply: Reply) -> None:
        config = self.teacher.config
        asked = "\n".join([config.system or "", *map("\n".join, self.teacher.examples), question.task.prompt])
        prompt, completion, complaint = account(reply, asked, config.max_tokens)
        dollars = self.purse.price(prompt, completion)
        who = reply.model or "", reply.build
        answer = Answer(reply.text, None, prompt, completion, reply.finish, *who, dollars, complaint, ticket)
        self.book.keep([(question, answer)])
        self.purse.pay(ticket, dollars)
        self.failures.clear()
        self._settle()
        self._check_same(answer)

    def _failed(self, reason: str) -> None:
        """No answer to this question. Raises: DataError if that goes on."""
        self.failures.append(reason)
        if len(self.failures) >= GIVE_UP:
            raise self._unanswered()

    def _unanswered(self) -> DataError:
        return DataError(
            f"the teacher at {self.endpoint.url} left {len(self.failures)} questions in a row unanswered, the last one "
            f"because of {self.failures[-1]}",
            hint="all answers are kept; the same command asks again for what is missing.",
        )

    def _pause(self, error: Again, number: int) -> float:
        """Seconds until the next try: as the endpoint asks, and then for everybody; else doubling, with chance in it."""
        if error.wait_s is None:
            return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number) * random.uniform(0.5, 1.0)
        if error.wait_s > PATIENCE_S:
            raise DataError(
                f"the teacher at {self.endpoint.url} asks to wait {error.wait_s:.0f} s, the limit is {PATIENCE_S:.0f}.",
                hint="all answers are kept; give the same command later.",
            )
        self.teacher.next_start = max(self.teacher.next_start, time.monotonic() + error.wait_s)
        return error.wait_s

    def _is_unchanged(self) -> bool:
        """Whether all earlier answers are of one model; otherwise that is the problem."""
        try:
            for answer in self.book.answers.values():
                self._check_same(answer)
        except DataError as error:
            self.problem = error
        return self.problem is None

    def _check_same(self, answer: Answer) -> None:
        """Raises: DataError if this is not who answered first. What is not said is no change."""
        model, build = self.first
        self.first = model or answer.teacher or None, build or answer.build
        said = answer.teacher or self.first[0], answer.build or self.first[1]
        if said != self.first and not self.endpoint.allow_model_change:
            raise DataError(
                f"the teacher at {self.endpoint.url} answers as model {said[0]!r}, build {said[1]!r}; before it was "
                f"{model!r}, {build!r}. All answers are kept.",
                hint="endpoint.allow_model_change=true goes on with both; another folder starts anew.",
            )

    async def _wait(self, seconds: float) -> bool:
        """Sleep; False as soon as everything stops."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    def _stop(self, problem: BaseException) -> None:
        """The first problem counts; nothing new is sent from now on."""
        self.problem = self.problem or problem
        self.stopping.set()
        self._settle()

    def _settle(self) -> None:
        """Wake those that wait for money."""
        self.settled.set()
        self.settled = asyncio.Event()
