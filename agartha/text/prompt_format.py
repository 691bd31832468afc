"""How a task is put to a model and its reply read back: as the model's chat template has it, or as plain text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agartha.core.errors import ConfigError, DataError
from agartha.text.chat import ChatTemplate
from agartha.text.shield import encode_rendered
from agartha.text.tokenizer import Tokenizer

Chat = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """template: None for plain text, as base models were trained on. stop_ids: every token that ends a reply.

    examples: pairs of prompt and reply that are shown before every task, as earlier turns of the conversation.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    stop_ids: tuple[int, ...] = ()
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def plain(tokenizer: Tokenizer) -> "PromptFormat":
        """Of the models that are made here."""
        return PromptFormat(tokenizer, None, (tokenizer.eos_id,))

    def encode(self, prompt: str) -> list[int]:
        """Ids of all that the model reads before it replies. Raises: DataError if the template or the tokenizer refuses."""
        if self.template is not None:
            return encode_rendered(self.tokenizer, self.template.render(self._messages(prompt)))
        bos = [self.tokenizer.bos_id] if self.tokenizer.adds_bos and self.tokenizer.bos_id is not None else []
        shown = [part for pair in self.examples for part in pair]
        return bos + self.tokenizer.encode("\n".join([*shown, prompt]))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The reply, without the token that ended it."""
        ended = len(token_ids) > 0 and token_ids[-1] in self.stop_ids
        return self.tokenizer.decode(token_ids[:-1] if ended else token_ids)

    def _messages(self, prompt: str) -> list[dict[str, str]]:
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, replied in self.examples:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
        return [*turns, {"role": "user", "content": prompt}]


def prompt_format(
    tokenizer: Tokenizer,
    template: str | None,
    stop_ids: tuple[int, ...],
    chat: Chat = "auto",
    system: str | None = None,
    examples: tuple[tuple[str, str], ...] = (),
) -> PromptFormat:
    """By what a model has. chat: "auto" takes its template where there is one.

    Raises: ConfigError if chat is "on" without a template, a system prompt has no place, or the template refuses it.
    """
    if chat == "on" and template is None:
        raise ConfigError('chat is "on", but this model has no chat template.', hint='chat = "off" asks in plain text.')
    if chat == "off" or template is None:
        if system is not None:
            raise ConfigError("a system prompt needs a chat template.", hint="leave system out.")
        return PromptFormat(tokenizer, None, stop_ids, None, examples)
    made = PromptFormat(tokenizer, ChatTemplate.of(template, tokenizer), stop_ids, system, examples)
    try:
        made.encode("?")
    except DataError as error:
        raise ConfigError(f"the model's chat template cannot be used: {error.message}", hint=error.hint) from error
    return made
