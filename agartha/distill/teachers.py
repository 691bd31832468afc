"""Who is asked: a model in our engine, or one behind an endpoint (`distill/endpoint.py`)."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import torch

from agartha.core.errors import ConfigError, DataError
from agartha.distill.book import Answer, Book, Question
from agartha.distill.config import TracesConfig
from agartha.distill.endpoint import EndpointTeacher, Examples, describe_endpoint
from agartha.engine.engine import Engine
from agartha.engine.load import Loaded, digest_of, found_at, load, name_of
from agartha.engine.request import Completion, Request
from agartha.engine.sampler import Sampling
from agartha.learn.precision import compute_dtype
from agartha.model.decoder import Decoder
from agartha.text.prompt_format import prompt_format
from agartha.text.tokenizer import Tokenizer
from agartha.worlds.types import Task
from agartha.worlds.world import World

SMALLEST, LARGEST = 2, 64  # rows' worth of questions in a portion: a portion's last answers leave rows empty


class EngineTeacher:
    """A model in this process. It answers the same to the same question, whatever else is asked with it."""

    def __init__(self, loaded: Loaded, config: TracesConfig, examples: Examples = ()) -> None:
        self.config, self.decoder, self.name = config, loaded.decoder, loaded.name
        self.digest = loaded.digest or weights_digest(loaded.decoder)
        self.prompts = prompt_format(
            loaded.tokenizer, loaded.template, loaded.eos_ids, config.chat, config.system, examples
        )
        self.portion = 4 * config.max_rows
        """How many questions to ask at once."""
        self._encoded: dict[str, list[int]] = {}
        self._engine: Engine | None = None

    @staticmethod
    def of(decoder: Decoder, tokenizer: Tokenizer, config: TracesConfig, name: str = "model") -> "EngineTeacher":
        """A model that was made here and is still in memory."""
        return EngineTeacher(Loaded(decoder, tokenizer, None, (tokenizer.eos_id,), name, ""), config)

    @staticmethod
    def open(config: TracesConfig, device: torch.device, examples: Examples = ()) -> "EngineTeacher":
        """Raises: what `load` raises."""
        loaded = load(config.teacher, config.weights)
        if device.type != "cpu":
            loaded.decoder.to(device)
            loaded.decoder.compute_dtype = compute_dtype("auto", device)
        return EngineTeacher(loaded, config, examples)

    def describe(self) -> dict[str, Any]:
        """What decides its answers."""
        return _description(self.name, self.digest, self.config)

    def askable(self, tasks: Sequence[Task]) -> list[Task]:
        """Those of the tasks that its tokenizer knows all words of, and that leave room for an answer.

        Raises: DataError if there are none, with the reason for the first.
        """
        limit = self.decoder.config.max_position_embeddings - self.config.max_tokens
        reason = ""
        for task in tasks:
            try:
                ids = self.prompts.encode(task.prompt)
            except DataError as error:
                reason = reason or error.message
                continue
            if len(ids) <= limit:
                self._encoded[task.prompt] = ids
            else:
                reason = (
                    reason
                    or f"its {len(ids)} tokens and max_tokens={self.config.max_tokens} exceed the model's {limit}"
                )
        found = [task for task in tasks if task.prompt in self._encoded]
        if tasks and not found:
            raise DataError(
                f"no task can be put to {self.name}: {reason}", hint="lower max_tokens, or choose another teacher."
            )
        return found

    def ask(self, questions: Sequence[Question], book: Book) -> None:
        """Get the answers of `askable` tasks into the book, all at once."""
        book.check()
        began, was_training = time.monotonic(), self.decoder.training
        self.decoder.eval()
        try:
            groups = self._opened().generate([self._request(question) for question in questions])
        finally:
            self.decoder.train(was_training)
        book.keep([(q, self._answer(q, completion)) for q, (completion,) in zip(questions, groups)])
        self._adapt(len(questions), time.monotonic() - began)

    def flops(self, answers: Sequence[Answer]) -> float:
        """Model FLOPs of these answers, prompts included."""
        shape = self.decoder.config
        alone = shape.flops_per_token(0, training=False)
        by_context = shape.flops_per_token(1, training=False) - alone
        lengths = [answer.prompt_tokens + answer.completion_tokens for answer in answers]
        return sum(length * (alone + by_context * length / 2) for length in lengths)

    def _opened(self) -> Engine:
        """An engine for the longest of the prompts known by now."""
        longest = max(map(len, self._encoded.values())) + self.config.max_tokens
        if self._engine is None or self._engine.max_length < longest:
            self._engine = Engine(self.decoder, self.config.max_rows, longest)
        return self._engine

    def _request(self, question: Question) -> Request:
        config = self.config
        how = Sampling(
            config.temperature,
            config.top_p,
            max_tokens=config.max_tokens,
            seed=question.seed,
            stop_ids=self.prompts.stop_ids,
        )
        return Request(self._encoded[question.task.prompt], how)

    def _answer(self, question: Question, completion: Completion) -> Answer:
        ids = tuple(completion.token_ids)
        prompt = len(self._encoded[question.task.prompt])
        return Answer(self.prompts.decode(ids), ids, prompt, len(ids), completion.finish, self.name)

    def _adapt(self, asked: int, seconds: float) -> None:
        """The next portion takes about `portion_s`. What is answered does not depend on it."""
        rows = self.config.max_rows
        wanted = int(asked * min(4.0, self.config.portion_s / max(seconds, 1e-3)))
        self.portion = max(SMALLEST * rows, min(LARGEST * rows, wanted))


Teacher = EngineTeacher | EndpointTeacher


def open_teacher(config: TracesConfig, world: World, device: torch.device) -> Teacher:
    """Whom the settings name. Raises: ConfigError if they name nobody."""
    tasks = [world.task(seed, (config.levels or world.levels)[0]) for seed in range(config.examples)]
    examples = tuple((task.prompt, world.oracle(task)) for task in tasks)
    if config.endpoint is not None:
        return EndpointTeacher(config, examples)
    _check_named(config)
    return EngineTeacher.open(config, device, examples)


def describe_teacher(config: TracesConfig) -> dict[str, Any]:
    """What decides the answers of whom the settings name, found out without loading it."""
    if config.endpoint is not None:
        return describe_endpoint(config.endpoint)
    _check_named(config)
    path = found_at(config.teacher)
    if not path.exists():
        raise ConfigError(f"there is no teacher {config.teacher!r}.", hint="name a model folder or a .gguf file.")
    return _description(name_of(config.teacher), digest_of(path), config)


def weights_digest(decoder: Decoder) -> str:
    """Of all weights, for a model that lies in no file."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{hashed.hexdigest()}"


def _description(name: str, digest: str, config: TracesConfig) -> dict[str, Any]:
    return {"model": name, "digest": digest, "weights": config.weights, "chat": config.chat}


def _check_named(config: TracesConfig) -> None:
    if not config.teacher:
        raise ConfigError(
            "no teacher is named.", hint="teacher=FOLDER, FILE.gguf or hf:OWNER/NAME, or endpoint.url=..."
        )
