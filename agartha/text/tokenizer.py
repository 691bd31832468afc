"""Text to token ids and back, over the `tokenizers` library, in a form that transformers opens with the same ids."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from agartha.core.errors import DataError
from agartha.core.hashing import digest

EOS, PAD, UNKNOWN = "<eos>", "<pad>", "<unk>"
FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"


class Tokenizer:
    """A trained tokenizer with an end and a padding token, some with a token for the beginning.

    adds_bos: whether plain text begins with `bos_id`, which is left to the caller; chat templates write their own.
    """

    def __init__(
        self, backend: Backend, eos: str = EOS, pad: str = PAD, bos: str | None = None, adds_bos: bool = False
    ):
        self.backend, self.eos, self.pad, self.bos = backend, eos, pad, bos
        self.eos_id, self.pad_id = self._id(eos), self._id(pad)
        self.bos_id = None if bos is None else self._id(bos)
        self.adds_bos = adds_bos and bos is not None
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._is_words = isinstance(backend.model, models.WordLevel)
        self._unknown_id = backend.token_to_id(UNKNOWN) if self._is_words else None
        self._words = backend.get_vocab() if self._is_words else {}

    @staticmethod
    def from_words(words: Sequence[str]) -> "Tokenizer":
        """One token a word, text split at white space. Raises: DataError for a word repeated or with white space."""
        every = [*words, EOS, PAD, UNKNOWN]
        bad = next((word for i, word in enumerate(every) if word.split() != [word] or word in every[:i]), None)
        if bad is not None:
            raise DataError(f"{bad!r} cannot be a word.", hint="words must differ, and hold no white space.")
        vocabulary = {word: i for i, word in enumerate(every)}
        backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        backend.add_special_tokens([EOS, PAD, UNKNOWN])
        return Tokenizer(backend)

    @staticmethod
    def train(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Byte-level BPE: any text goes in and comes back unchanged. Raises: DataError if vocab_size is below 259."""
        if vocab_size < 259:
            raise DataError(
                f"vocab_size={vocab_size} must be at least 259.", hint="256 bytes and three special tokens."
            )
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[EOS, PAD, UNKNOWN], initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return Tokenizer(backend)

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """From a model folder. Raises: DataError if there is none or it names no end token."""
        try:
            backend = Backend.from_file(str(folder / FILE))
            settings = json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).exists() else {}
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"{folder} holds no readable {FILE}: {error}", hint="name a model folder.") from error
        backend.no_truncation()  # some published files cut texts or fill them up unasked
        backend.no_padding()
        bos, eos, pad = (_content(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token"))
        eos = eos or EOS
        return Tokenizer(backend, eos, pad or eos, bos, bool(settings.get("add_bos_token")))

    def save(self, folder: Path) -> None:
        """Write both files into `folder`."""
        self.backend.save(str(folder / FILE))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos, "pad_token": self.pad,
            "clean_up_tokenization_spaces": False, "model_max_length": 1_000_000_000,
        }  # fmt: skip
        if self.bos is not None:
            settings |= {"bos_token": self.bos, "add_bos_token": self.adds_bos}
        if self.backend.token_to_id(UNKNOWN) is not None:
            settings["unk_token"] = UNKNOWN
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2))

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Raises: DataError naming a word this tokenizer does not know (word-level only)."""
        if self._is_words:
            try:  # a dictionary is ten times as fast as the library here
                return [self._words[word] for word in text.split()]
            except KeyError:
                pass  # special tokens written without white space, or a word we do not know
        encoding = self.backend.encode(text, add_special_tokens=False)
        if self._unknown_id is not None and self._unknown_id in encoding.ids:
            word = text[slice(*encoding.offsets[encoding.ids.index(self._unknown_id)])]
            raise DataError(f"the word {word!r} is not among the {self.vocab_size} words of this tokenizer.",
                            hint="use only words the model was trained on, or another tokenizer.")  # fmt: skip
        return encoding.ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, many at once."""
        if self._is_words:
            return [self.encode(text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Words are joined by one space; special tokens are kept."""
        if self._is_words:
            return " ".join(self.backend.id_to_token(i) or UNKNOWN for i in ids)
        return self.backend.decode(list(ids), skip_special_tokens=False)

    @property
    def control_tokens(self) -> list[str]:
        """How the special tokens are spelled."""
        return [token for i in self.special_ids if (token := self.token(i))]

    def token(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it, or None if there is no such id."""
        return self.backend.id_to_token(token_id)

    def find(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self.backend.token_to_id(token)

    def check_model(self, vocab_size: int) -> None:
        """Raises: DataError if a model of `vocab_size` rows cannot take every id."""
        if self.vocab_size > vocab_size:
            raise DataError(
                f"this tokenizer has {self.vocab_size} tokens, the model only {vocab_size}: they are no pair.",
                hint="load the tokenizer that is saved beside the model.",
            )

    def has_token(self, text: str) -> bool:
        """Whether these characters are one token."""
        return self.backend.token_to_id(text) is not None

    def digest(self) -> str:
        return digest(self.backend.to_str().encode() + tokenizers.__version__.split(".")[0].encode())

    def _id(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer has no token {token!r}.", hint="its tokenizer_config.json names it.")
        return found


def _content(token: str | dict | None) -> str | None:
    return token["content"] if isinstance(token, dict) else token
