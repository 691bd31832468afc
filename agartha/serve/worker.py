"""The engine's thread, and the ways to it from asyncio.

One thread owns one engine: it takes what it is asked from a queue, steps, and hands events back to the event loop, all of a
step's at once. Nothing else touches the engine. How much is open is counted on the asyncio side, so a full queue is refused
at once. A client that leaves closes its stream, which the thread hears of before its next step. If the thread dies, everything
open fails, and so does everything that is asked later: nothing waits for a dead engine.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

import numpy as np

from agartha.core.errors import AgarthaError
from agartha.engine.blocks import BLOCK
from agartha.engine.request import Event, Request, Stats
from agartha.serve.errors import APIError

log = logging.getLogger("agartha.serve")
Result = TypeVar("Result")
Item = Event | Exception


class Steps(Protocol):
    """What a worker needs of an engine."""

    max_rows: int
    max_length: int

    def add(self, request: Request) -> int: ...
    def step(self) -> list[Event]: ...
    def abort(self, request: int) -> None: ...
    def stats(self) -> Stats: ...
    def embed(self, prompts: Sequence[Sequence[int]], adapter: str = "") -> np.ndarray: ...
    @property
    def has_work(self) -> bool: ...


class Stream:
    """Events of one request as they come. To be closed when nobody wants more."""

    def __init__(self, worker: "Worker", request: Request):
        self.worker, self.request = worker, request
        self.number: int | None = None  # the engine's; its thread's own
        self.running = request.n  # completions that the engine has not ended; its thread's own
        self.left = request.n  # completions that have not been read to their end
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Raises: APIError, AgarthaError: what went wrong with this request or with the engine."""
        while self.left:
            item = await self.items.get()
            if isinstance(item, Exception):
                raise item
            self.left -= item.finish is not None
            yield item

    def close(self) -> None:
        """No more events are wanted. What still runs is aborted before the next step."""
        self.worker.cancel(self)


class Worker:
    """`queue_limit` completions may wait beside the `max_rows` that run. To be started inside the event loop."""

    def __init__(self, engine: Steps, queue_limit: int = 64):
        self.engine, self.limit = engine, engine.max_rows + queue_limit
        self.max_length = min(engine.max_length, engine.stats().blocks * BLOCK)
        self.last_stats = engine.stats()
        self.aborted = self.refused = 0
        self.failure: BaseException | None = None
        self.is_draining = False
        self._open: set[Stream] = set()
        self._asked: set[asyncio.Future[Any]] = set()
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._streams: dict[int, Stream] = {}  # by the engine's numbers; the thread's own
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._turn, self._queued = asyncio.Lock(), 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present step."""
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def open_completions(self) -> int:
        return sum(stream.request.n for stream in self._open)

    def submit(self, request: Request) -> Stream:
        """Hand a request to the engine. Raises: APIError 503 if it is dead or draining, 429 if too many wait, 400 for n beyond
        what can ever wait."""
        self._check(request.n)
        stream = Stream(self, request)
        self._open.add(stream)
        self._orders.put(lambda: self._add(stream))
        return stream

    def cancel(self, stream: Stream) -> None:
        """See `Stream.close`."""
        if stream.is_closed:
            return
        stream.is_closed = True
        self._open.discard(stream)
        if stream.left:
            self.aborted += 1
            self._orders.put(lambda: self._abort(stream))

    async def ask(self, question: Callable[[], Result], seconds: float | None = None) -> Result:
        """Have the engine's thread call something between two steps. Raises: TimeoutError, or what it raised."""
        if self.failure is not None:
            raise self._dead()
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._asked.add(answer)
        answer.add_done_callback(self._asked.discard)
        self._orders.put(lambda: self._answer(answer, question))
        async with asyncio.timeout(seconds):
            return await answer

    async def stats(self, seconds: float | None = None) -> Stats:
        """Asked of the engine, so it says also that the engine's loop goes round. Raises: TimeoutError, APIError."""
        self.last_stats = await self.ask(self.engine.stats, seconds)
        return self.last_stats

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One request for vectors at a time, so that they do not crowd out those who chat. Raises: APIError if too many wait."""
        if self._queued >= self.limit:
            raise self._full(self._queued)
        self._queued += 1
        try:
            async with self._turn:
                yield
        finally:
            self._queued -= 1

    async def embed(self, prompts: list[list[int]], adapter: str = "") -> np.ndarray:
        """float32 [N, H]. Raises: APIError if the engine is dead, or what it raised."""
        return await self.ask(lambda: self.engine.embed(prompts, adapter))

    async def alive(self, seconds: float) -> bool:
        """Whether the engine's loop answers in time."""
        try:
            await self.stats(seconds)
        except (TimeoutError, APIError):
            return False
        return True

    async def drain(self, seconds: float) -> bool:
        """Take nothing more, let what runs finish; what is left after `seconds` fails. False if anything was left."""
        self.is_draining = True
        try:
            async with asyncio.timeout(seconds):
                while self._open:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            for stream in tuple(self._open):
                stream.items.put_nowait(APIError(503, "the server is shutting down.", "shutting_down"))
            return False
        return True

    def _check(self, wanted: int) -> None:
        if self.failure is not None:
            raise self._dead()
        if self.is_draining:
            raise APIError(503, "the server is shutting down.", "shutting_down", headers={"Retry-After": "5"})
        if wanted > self.limit:
            raise APIError(
                400, f"{wanted} completions at once are more than the {self.limit} that may wait.", "invalid_value", "n"
            )
        if self.open_completions + wanted > self.limit:
            raise self._full(self.open_completions)

    def _full(self, count: int) -> APIError:
        self.refused += 1
        return APIError(
            429, f"{count} run or wait, the limit is {self.limit}.", "queue_full", headers={"Retry-After": "2"}
        )

    def _dead(self) -> APIError:
        return APIError(503, f"the engine has stopped ({type(self.failure).__name__}).", "engine_dead")

    def _fail_all(self, error: BaseException) -> None:
        for stream in tuple(self._open):
            stream.items.put_nowait(APIError(500, f"the engine failed ({type(error).__name__}).", "engine_failed"))
        for answer in tuple(self._asked):
            answer.set_exception(self._dead())

    # what follows runs in the engine's thread

    def _run(self) -> None:
        try:
            while self._take_orders():
                if self.engine.has_work:
                    self._step()
        except BaseException as error:
            log.critical("the engine's loop died", exc_info=error)
            self.failure = error
            self._orders.put(None)
            self._tell(self._fail_all, error)

    def _take_orders(self) -> bool:
        """Everything that was asked; waits if there is nothing to do. False when it is time to end."""
        while True:
            try:
                order = self._orders.get(block=not self.engine.has_work)
            except Empty:
                return True
            if order is None:
                return False
            order()

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except AgarthaError as error:  # numbers that are not finite: what runs has failed, the engine has not
            failed = list(self._streams.values())
            for stream in failed:
                self._abort(stream)
            self._tell(_put_all, [(stream, error) for stream in failed])
            return
        pairs = [(self._streams[event.request], event) for event in events if event.request in self._streams]
        for stream, event in pairs:
            stream.running -= event.finish is not None
            if not stream.running:
                self._streams.pop(event.request, None)
        if pairs:
            self._tell(_put_all, pairs)

    def _add(self, stream: Stream) -> None:
        if stream.is_closed:
            return
        try:
            stream.number = self.engine.add(stream.request)
        except Exception as error:  # of this request alone
            self._tell(_put_all, [(stream, error)])
            return
        self._streams[stream.number] = stream

    def _answer(self, answer: "asyncio.Future[Result]", question: Callable[[], Result]) -> None:
        if answer.done():  # nobody waits any more
            return
        try:
            self._tell(_settle, answer, question(), None)
        except Exception as error:
            self._tell(_settle, answer, None, error)

    def _abort(self, stream: Stream) -> None:
        if stream.number is not None:
            self._streams.pop(stream.number, None)
            self.engine.abort(stream.number)

    def _tell(self, call: Callable[..., None], *given: Any) -> None:
        """Have the event loop call something."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *given)
        except RuntimeError:  # the event loop is closed: nobody listens any more
            log.debug("an event came after the loop was closed")


def _put_all(pairs: list[tuple[Stream, Item]]) -> None:
    for stream, item in pairs:
        stream.items.put_nowait(item)


def _settle(answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
