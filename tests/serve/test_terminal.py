import io
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import GROUPED
from scripted import TEMPLATE, ScriptedEngine

from agartha.core.errors import ConfigError, DataError
from agartha.engine.load import Loaded
from agartha.model.config import ModelConfig
from agartha.model.decoder import Decoder
from agartha.model.hf_folder import save_model
from agartha.serve import terminal
from agartha.serve.conversation import Conversation, Options, checked_weights
from agartha.serve.terminal import Screen, answer_once, talk
from agartha.text.tokenizer import Tokenizer

SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + TEMPLATE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


USUAL = Options()


def scripted(options: Options = USUAL, template: str | None = TEMPLATE) -> tuple[Conversation, ScriptedEngine]:
    """With a model that says what it is told to."""
    engine = ScriptedEngine()
    decoder = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=256, num_parameters=lambda: 2_000_000))
    eos = (engine.tokenizer.eos_id,)
    loaded = Loaded(decoder, engine.tokenizer, template, eos, "scripted", "sha256:0")  # type: ignore[arg-type]
    return Conversation.open(loaded, options, engine), engine  # type: ignore[arg-type]


def keys(*pressed: str | type[BaseException]) -> Callable[[], str]:
    """What is typed at the prompt, turn by turn; then Ctrl-D."""
    left = iter([*pressed, EOFError])

    def ask() -> str:
        key = next(left)
        if isinstance(key, str):
            return key
        raise key

    return ask


def talked(conversation: Conversation, *pressed: str | type[BaseException]) -> str:
    out = Terminal()
    talk(conversation, Screen(out), keys(*pressed))
    return out.getvalue()


def answered(conversation: Conversation, text: str, out: Any = None) -> str:
    out = out or io.StringIO()
    answer_once(conversation, text, out)
    return out.getvalue()


def read(engine: ScriptedEngine) -> list[str]:
    """Prompts, as the model read them."""
    return [engine.tokenizer.decode(request.prompt_ids) for request in engine.requests]


def test_a_piped_question_gets_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    conversation, engine = scripted()
    assert answered(conversation, "hello\n") == "You said: hello\n"
    assert answered(conversation, "/think deep\n/say shallow é") == "shallow é\n"
    assert engine.requests[0].sampling.temperature == 0
    assert capsys.readouterr().err == ""


def test_a_piped_reply_that_was_cut_says_so_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(scripted(Options(max_tokens=3))[0], "hello there").startswith("You")
    assert "cut at its limit" in capsys.readouterr().err


def test_nothing_piped_in_is_named() -> None:
    with pytest.raises(DataError, match="nothing was piped in"):
        answered(scripted()[0], " \n")


def test_the_conversation_is_remembered_until_it_is_reset() -> None:
    conversation, engine = scripted()
    shown = talked(conversation, " /say one", " /say two", "/reset", " /say three")
    first, second, third = read(engine)
    assert "one" in shown and "two" in shown and "three" in shown and "a new conversation." in shown
    assert second.startswith(first + "one<|im_end|>") and "/say two" in second
    assert "one" not in third


def test_thinking_is_shown_dim_and_remembered_apart() -> None:
    conversation, _ = scripted()
    shown = talked(conversation, " /think hmm\n/say yes")
    assert "\x1b[2m" in shown and "<think>" not in shown
    assert conversation.turns[-1] == {"role": "assistant", "content": "yes", "reasoning_content": "hmm"}


def test_control_characters_of_a_model_do_not_reach_the_terminal_but_a_pipe_gets_all() -> None:
    said = " /say a\x1b]0;owned\x07b\x9b31mc"
    assert "a]0;ownedb31mc" in talked(scripted()[0], said)
    assert answered(scripted()[0], said) == said[6:] + "\n"


def test_the_system_prompt_is_in_plain_sight() -> None:
    conversation, engine = scripted(template=SYSTEM)
    shown = talked(conversation, "/system", "/system Be brief.", " /say x", "/prompt")
    assert shown.count("system prompt (put in by the model's chat template): Be good.") == 2
    assert "system prompt: Be brief." in shown
    assert read(engine)[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert read(engine)[0] in shown.replace("\x1b[0m", "")
    assert "system prompt: none" in talked(scripted()[0])
    assert "system prompt: Mine." in talked(scripted(Options(system="Mine."))[0])


def test_commands_that_are_none_are_named_and_a_space_makes_them_messages() -> None:
    conversation, engine = scripted()
    shown = talked(conversation, "/wat", "/help", " /usr/bin is a folder", "  ", "/quit", "never asked")
    assert "/wat is no command" in shown and shown.count("/reset ") == 2
    assert "You said: /usr/bin is a folder" in shown
    assert len(engine.requests) == 1


def test_ctrl_c_at_the_prompt_asks_once_and_ends_the_second_time() -> None:
    assert "You said: hi" in talked(scripted()[0], KeyboardInterrupt, "hi", KeyboardInterrupt)
    conversation, engine = scripted()
    talked(conversation, KeyboardInterrupt, KeyboardInterrupt, "never asked")
    assert engine.requests == []


def press_ctrl_c(after_s: Iterable[float]) -> None:
    """While a reply is written, in a thread of its own."""
    usual = signal.getsignal(signal.SIGINT)

    def press() -> None:
        for delay in after_s:
            time.sleep(delay)
            if signal.getsignal(signal.SIGINT) is not usual:  # or the test has failed, and pytest would take it
                os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()


def test_ctrl_c_stops_the_reply_and_what_was_said_by_then_is_remembered() -> None:
    conversation, engine = scripted()
    press_ctrl_c([0.5])
    shown = talked(conversation, " /slow 20\n/say " + "word " * 500, " /say next")
    assert "(stopped)" in shown and "next" in shown
    assert not engine.has_work
    said = conversation.turns[1]["content"]
    assert said.startswith("word word") and len(said) < 2000


def test_a_second_ctrl_c_ends_even_a_step_that_lasts() -> None:
    conversation, _ = scripted()
    press_ctrl_c([0.3, 0.3])
    start, before = time.monotonic(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        talked(conversation, " /slow 20000\n/say x")
    assert time.monotonic() - start < 10
    assert signal.getsignal(signal.SIGINT) is before


def test_a_conversation_too_long_is_told_and_stays_as_it_was() -> None:
    conversation, engine = scripted()
    engine.max_length = 60
    shown = talked(conversation, " /say ok", "x" * 500, " /say still here")
    assert "the model's context holds 60" in shown and "/reset" in shown
    assert "x" * 500 not in str(conversation.turns)
    assert "ok" in shown


def test_a_failure_of_the_engine_is_told_and_the_talk_goes_on() -> None:
    shown = talked(scripted()[0], " /fail", " /say on")
    assert "gave the reply up" in shown and "on" in shown


def test_raw_text_is_gone_on_from_as_it_is() -> None:
    conversation, engine = scripted(Options(raw=True, seed=7, temperature=0.5, max_tokens=9))
    answered(conversation, " Once upon <think>\n")
    assert read(engine) == [" Once upon <think>\n"]
    how = engine.requests[0].sampling
    assert (how.seed, how.temperature, how.max_tokens) == (7, 0.5, 9)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        answered(scripted(Options(max_tokens=0))[0], "hi")
    with pytest.raises(ConfigError, match="temperature"):
        answered(scripted(Options(temperature=-1))[0], "hi")
    with pytest.raises(ConfigError, match="'int3' is not known"):
        checked_weights("int3")


def test_lines_that_were_pasted_together_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["one", "two", "", "three"]
    monkeypatch.setattr("builtins.input", lambda prompt="": lines.pop(0))
    monkeypatch.setattr(terminal, "_more_waits", lambda: len(lines) > 1)
    assert terminal._ask() == "one\ntwo\n"
    assert terminal._ask() == "three"


def chat(model: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agartha.cli", "chat", str(model), *options]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=240, check=False)


def test_the_command_answers_what_is_piped_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train([], 259)
    config = GROUPED | {"model_type": "llama", "vocab_size": 259, "eos_token_id": tokenizer.eos_id}
    save_model(tmp_path / "tiny", Decoder(ModelConfig(**config)), tokenizer, {})
    first, second = (chat(tmp_path / "tiny", "hi", "--max-tokens", "8", "--seed", "1") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.endswith("\n")
    missing = chat(tmp_path / "none", "hi")
    assert missing.returncode == 1 and "Traceback" not in missing.stderr and "hint" in missing.stderr


@pytest.mark.slow
def test_a_real_model_names_the_capital_of_france(smollm2: Path) -> None:
    done = chat(smollm2, "What is the capital of France?\n")
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n"), done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_one_can_talk_to_a_real_model_at_a_terminal(smollm2: Path) -> None:
    import pty

    controller, end = pty.openpty()
    command = [sys.executable, "-m", "agartha.cli", "chat", str(smollm2)]
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 120
        while text not in shown:
            assert select.select([controller], [], [], max(0.0, deadline - time.monotonic()))[0], shown
            shown += os.read(controller, 65536).decode(errors="replace")
        shown = shown.partition(text)[2]

    try:
        wait_for("system prompt (put in by the model's chat template): You are a helpful AI assistant named SmolLM")
        wait_for("> ")
        os.write(controller, b"What is the capital of France?\n")
        wait_for("The capital of France is Paris.")
        wait_for("> ")
        os.write(controller, b"/quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(controller)
