"""Chat in a terminal: `agartha chat MODEL`. Piped into, it answers once and prints the answer alone.

A model's words are a stranger's: on a terminal, control characters in them are left out.
"""

import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import IO, Any

from agartha.core.errors import AgarthaError, DataError
from agartha.engine.load import Loaded, found_at, load
from agartha.model.adapter_folder import read_adapter
from agartha.model.adapters import put_adapters
from agartha.model.open import open_source
from agartha.serve.conversation import ADAPTER, Conversation, Options
from agartha.text.reply import Content, Piece, Thinking

SMALL_BYTES = 2**31  # of float32 weights
PASTE_S = 0.03  # lines that come this close together were pasted
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DIM, BOLD, PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
HELP = """\
/reset          forget the conversation
/system TEXT    another system prompt, and forget the conversation; without TEXT, show it
/prompt         show what the model read last, word for word
/quit           end (Ctrl-D too); Ctrl-C stops a reply, twice it ends
A line that begins with a space is never a command."""


def run(model: str, options: Options) -> None:
    """Talk, or answer what is piped in. Raises: what opening the model raises, DataError for too long a text."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # history and editing, where the system has it
            import readline

            readline.parse_and_bind("set enable-bracketed-paste on")
        screen = Screen(sys.stdout)
        with screen.note(f"loading {model} ..."):
            conversation = Conversation.open(_loaded(model, options), options)
        talk(conversation, screen, _ask)
    else:
        text = sys.stdin.read()
        conversation = Conversation.open(_loaded(model, options), options)
        answer_once(conversation, text, sys.stdout)


def _loaded(model: str, options: Options) -> Loaded:
    """Small models in float32: one conversation does not need packed weights' speed, and their rounding can turn an answer.

    SmolLM2-135M's Q4_1 file says "Paris" in float32, and in 8-bit activations "L'Étoile", here as in llama.cpp.
    """
    is_small = 4 * open_source(found_at(model)).config.num_parameters() <= SMALL_BYTES
    loaded = load(model, "float32" if options.weights == "auto" and is_small else options.weights)
    if options.adapter is not None:
        put_adapters(loaded.decoder, {ADAPTER: read_adapter(options.adapter)})
    return loaded


class Screen:
    """Where replies are written; dim and bold where that can be seen."""

    def __init__(self, out: IO[str]):
        self.out, self.is_terminal = out, out.isatty()

    def write(self, text: str, style: str = "") -> None:
        if self.is_terminal:
            text = CONTROL.sub("", text)
            text = f"{style}{text}{PLAIN}" if style else text
        self.out.write(text)
        self.out.flush()

    def line(self, text: str = "", style: str = "") -> None:
        self.write(text, style)
        self.out.write("\n")
        self.out.flush()

    @contextmanager
    def note(self, text: str) -> Generator[None, None, None]:
        """Shown while something lasts."""
        if self.is_terminal:
            self.write(text, DIM)
        try:
            yield
        finally:
            if self.is_terminal:
                self.out.write("\r\x1b[K")

    def show(self, pieces: Iterator[Piece]) -> None:
        thinking = False
        for piece in pieces:
            if isinstance(piece, Thinking):
                thinking = True
                self.write(piece.text, DIM)
            elif isinstance(piece, Content):
                if thinking:
                    self.write("\n\n")
                thinking = False
                self.write(piece.text)
        self.line()


def answer_once(conversation: Conversation, text: str, out: IO[str]) -> None:
    """The answer alone, without thinking. Raises: DataError if `text` is empty or too long."""
    text = text if conversation.options.raw else text.strip()
    if not text:
        raise DataError("nothing was piped in.", hint='echo "a question" | agartha chat MODEL')
    screen = Screen(out)
    try:
        screen.show(piece for piece in conversation.say(text) if isinstance(piece, Content))
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if conversation.finish == "length":
        print("agartha: the reply was cut at its limit of tokens.", file=sys.stderr)


def talk(conversation: Conversation, screen: Screen, ask: Callable[[], str]) -> None:
    """Turn by turn until /quit or the end of input. `ask` returns a message; it may raise KeyboardInterrupt or EOFError."""
    _greet(conversation, screen)
    interrupted = False  # by the last key pressed
    while True:
        try:
            text = ask()
            interrupted = False
        except EOFError:
            screen.line()
            return
        except KeyboardInterrupt:
            screen.line()
            if interrupted:
                return
            interrupted = True
            screen.line("Ctrl-C once more, or /quit, ends.", DIM)
            continue
        if text.startswith("/"):
            if not _obey(text.strip(), conversation, screen):
                return
        elif text.strip():
            interrupted = _reply(conversation, screen, text)


def _greet(conversation: Conversation, screen: Screen) -> None:
    config = conversation.loaded.decoder.config
    size = f"{config.num_parameters() / 1e6:,.0f} M parameters, {conversation.engine.max_length} tokens of context"
    screen.line(f"{conversation.loaded.name}: {size}", BOLD)
    if not conversation.options.raw:
        _show_system(conversation, screen)
    screen.line("/help lists the commands.", DIM)


def _show_system(conversation: Conversation, screen: Screen) -> None:
    text, origin = conversation.shown_system
    screen.line(f"system prompt{f' ({origin})' if origin and text else ''}: {text or 'none'}", DIM)


def _obey(command: str, conversation: Conversation, screen: Screen) -> bool:
    """Whether to go on."""
    word, _, rest = command.partition(" ")
    if word == "/quit":
        return False
    if word == "/reset" or (word == "/system" and rest.strip()):
        conversation.turns = []
        conversation.system = rest.strip() if word == "/system" else conversation.system
        screen.line("a new conversation.", DIM)
    if word == "/system":
        _show_system(conversation, screen)
    elif word == "/prompt":
        screen.line(conversation.prompt or "nothing yet.", DIM)
    elif word != "/reset":
        screen.line(HELP if word == "/help" else f"{word} is no command.\n{HELP}", DIM)
    return True


def _reply(conversation: Conversation, screen: Screen, text: str) -> bool:
    """Whether it was stopped by Ctrl-C."""
    with _interrupts() as stopped:
        try:
            screen.show(conversation.say(text.removeprefix(" ") if text.startswith(" /") else text, stopped))
        except AgarthaError as error:
            screen.line(str(error), BOLD)
            return stopped()
    notes = {"length": "(cut at the limit of tokens)", "interrupted": "(stopped)"}
    if conversation.finish in notes:
        screen.line(notes[conversation.finish], DIM)
    screen.line()
    return stopped()


@contextmanager
def _interrupts() -> Generator[Callable[[], bool], None, None]:
    """The first Ctrl-C is only noted, so that the engine's step ends in good order; the second raises KeyboardInterrupt."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _ask() -> str:
    """A message from the keyboard; lines that were pasted together are one."""
    lines = [input("> ")]
    while _more_waits():
        lines.append(input())
    return "\n".join(lines)


def _more_waits() -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], PASTE_S)[0])
    except (OSError, ValueError):  # not every system can ask
        return False
