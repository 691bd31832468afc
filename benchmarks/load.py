"""Many clients at once against a live server on loopback: right answers, aborts, bad bodies; then: did it leak?

Every prompt is first asked alone; under load its answer must be that text again, so a reply mixed with another's is seen. At the
end no block of the cache may be held, nothing may run or wait, and memory must have stayed flat after the warm-up. Exit status 1
if anything was wrong. `python benchmarks/load.py MODEL --minutes 10 --json`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH, LARGE = "/v1/chat/completions", 9 * 2**20
HOSTILE = [
    b"", b"{", b"[]", b"[" * 50_000, b'{"messages": []}', b'{"messages": [{"role": "user"}], "n": 0}', b"\xff\xfe",
    b'{"messages": 1}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 99}', b'{"messages": [{"role": "king", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 21}', b"x" * 100_000,
]  # fmt: skip
SUBJECTS = ["rivers", "bread", "clocks", "moons", "bridges", "wool", "maps", "salt", "bees", "glass", "trains", "ink"]
FLAT = 0.10  # of memory, that it may grow between the first quarter and the end


@dataclass
class Load:
    """What was seen."""

    url: str
    options: argparse.Namespace
    prompts: list[dict[str, Any]] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        return host, int(port)

    async def send(self, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """A request as HTTP/1.0, so that the reply ends where the connection does; the status, and what follows to be read."""
        reader, writer = await asyncio.open_connection(*self.address)
        head = f"POST {PATH} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with contextlib.suppress(ConnectionError):  # refused while it was sent: the answer is there all the same
            writer.write(head.encode() + body)
            await writer.drain()
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer, status

    async def ask(self, number: int, stream: bool, leave_after: int | None = None) -> str | None:
        """One answer; None if it was refused for now or left. Raises: ValueError for what must not be."""
        began = time.perf_counter()
        reader, writer, status = await self.send(json.dumps(self.prompts[number] | {"stream": stream}).encode())
        try:
            if status == 429:
                return None
            if status != 200:
                raise ValueError(f"status {status}: {(await reader.read(500)).decode(errors='replace')}")
            if not stream:
                answer = json.loads(await reader.read(-1))
                self.total.append(time.perf_counter() - began)
                return answer["choices"][0]["message"]["content"]
            return await self._read_stream(reader, began, leave_after)
        finally:
            writer.close()

    async def _read_stream(self, reader: asyncio.StreamReader, began: float, leave_after: int | None) -> str | None:
        parts: list[str] = []
        seen = 0
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(f"in the stream: {event['error']}")
            seen += 1
            if seen == 2:  # the first only tells the role
                self.first.append(time.perf_counter() - began)
            if leave_after is not None and seen > leave_after:
                return None
            parts += [choice["delta"].get("content") or "" for choice in event["choices"]]
        self.total.append(time.perf_counter() - began)
        return "".join(parts)

    async def client(self, number: int, end: float) -> None:
        """One client's day."""
        chance = random.Random(number)
        while time.perf_counter() < end:
            what = chance.choices(["ask", "leave", "malformed", "oversized"], [75, 15, 8, 2])[0]
            try:
                await getattr(self, f"_{what}")(chance)
            except (ValueError, OSError, EOFError, KeyError) as error:
                self.wrong.append(f"{what}: {error!r}"[:300])
                await asyncio.sleep(1)

    async def _ask(self, chance: random.Random) -> None:
        number = chance.randrange(len(self.prompts))
        text = await self.ask(number, chance.random() < 0.7)
        if text is None:
            self.counts["refused"] += 1
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            return
        self.counts["answered"] += 1
        if text != self.expected[number]:
            self.wrong.append(f"prompt {number} was answered {text!r}, alone {self.expected[number]!r}"[:300])

    async def _leave(self, chance: random.Random) -> None:
        await self.ask(chance.randrange(len(self.prompts)), True, chance.randrange(0, 8))
        self.counts["left"] += 1

    async def _malformed(self, chance: random.Random) -> None:
        await self._must_refuse(chance.choice(HOSTILE), "malformed")

    async def _oversized(self, chance: random.Random) -> None:
        await self._must_refuse(b"x" * LARGE, "oversized")

    async def _must_refuse(self, body: bytes, name: str) -> None:
        _, writer, status = await self.send(body)
        writer.close()
        self.counts[name] += 1
        if not 400 <= status < 500:
            self.wrong.append(f"{name} body of {len(body)} bytes: status {status}")

    async def metric(self, name: str) -> float:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        text = (await reader.read(-1)).decode()
        writer.close()
        return sum(float(value) for value in re.findall(rf"^agartha_{name}\{{.*\}} (\S+)$", text, re.MULTILINE))

    async def run(self, pid: int) -> None:
        for seed, subject in enumerate(SUBJECTS * 2):
            content = f"Name {seed + 2} things about {subject}, one a line."
            self.prompts.append({"messages": [{"role": "user", "content": content}], "max_tokens": 8 + seed, "seed": seed,
                                 "temperature": 0.0 if seed % 2 else 0.9})  # fmt: skip
        self.expected = [await self.ask(number, False) or "" for number in range(len(self.prompts))]
        self.total.clear()
        end = time.perf_counter() + self.options.minutes * 60
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(pid, end))
            for number in range(self.options.clients):
                group.create_task(self.client(number, end))
        await self._check_end()

    async def _watch(self, pid: int, end: float) -> None:
        while time.perf_counter() < end:
            self.memory.append(resident(pid))
            await asyncio.sleep(1)

    async def _check_end(self) -> None:
        for _ in range(100):
            if not await self.metric("running") + await self.metric("waiting"):
                break
            await asyncio.sleep(0.1)
        for name in ("running", "waiting", "blocks_held"):
            if left := await self.metric(name):
                self.wrong.append(f"{name} is {left:g} at the end, must be 0")
        again = [await self.ask(number, False) for number in range(len(self.prompts))]
        self.wrong += [
            f"prompt {i} alone has another answer now" for i, (a, b) in enumerate(zip(again, self.expected)) if a != b
        ]
        if self.growth > FLAT:
            self.wrong.append(f"memory grew by {self.growth:.0%} after the first quarter")

    @property
    def growth(self) -> float:
        """Median of the last tenth over that of the tenth after the first quarter, less 1."""
        tenth = max(1, len(self.memory) // 10)
        quarter = len(self.memory) // 4
        return statistics.median(self.memory[-tenth:]) / statistics.median(self.memory[quarter : quarter + tenth]) - 1


def resident(pid: int) -> int:
    """Bytes."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    return {f"p{share}": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 4) for share in (50, 99)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model folder or GGUF file")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    words = ["serve", options.model, "--port", "0", "--max-rows", "16", "--queue-limit", "32", "--max-length", "1024"]
    with subprocess.Popen([sys.executable, "-m", "agartha.cli", *words], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            load = Load(server.stdout.readline().strip(), options)
            asyncio.run(load.run(server.pid))
        finally:
            server.terminate()
    if server.returncode:
        load.wrong.append(f"the server ended with {server.returncode}")
    report = {
        "name": "load", "clients": options.clients, "minutes": options.minutes, **load.counts,
        "time_to_first_token_s": percentiles(load.first), "total_s": percentiles(load.total),
        "memory_mib": [round(load.memory[0] / 2**20), round(max(load.memory) / 2**20), round(load.memory[-1] / 2**20)],
        "memory_growth": round(load.growth, 4), "wrong": len(load.wrong), "examples": load.wrong[:5],
    }  # fmt: skip
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()))
    return bool(load.wrong)


if __name__ == "__main__":
    sys.exit(main())
