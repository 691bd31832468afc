"""`agartha serve MODEL --adapter NAME=FOLDER`: one engine, and every adapter a model of its own to clients."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from live import Live, live
from models import GROUPED, random_decoder
from scripted import TEMPLATE, make_tokenizer

from agartha.core.errors import ConfigError
from agartha.model.adapter_folder import save_adapter
from agartha.model.hf_folder import save_model
from agartha.model.lora import add_lora, pairs, remove_lora
from agartha.model.lora_config import LoraConfig
from agartha.serve.program import EngineOptions, open_model, with_adapters


def create(server: Live, model: str):
    messages = [{"role": "user", "content": "hello"}]
    return server.openai().chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24)  # type: ignore[arg-type]


def test_adapters_are_models_of_their_own_over_one_engine(tmp_path: Path) -> None:
    tokenizer, saved = make_tokenizer(), {}
    shape = GROUPED | {"model_type": "llama", "vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id}
    decoder = random_decoder(shape)
    save_model(tmp_path / "tiny", decoder, tokenizer)
    (tmp_path / "tiny" / "chat_template.jinja").write_text(TEMPLATE)
    for seed, name in enumerate(("sums", "poems")):
        add_lora(decoder, LoraConfig(rank=4), seed)
        with torch.no_grad():
            for pair in pairs(decoder).values():
                pair.B.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
        save_adapter(tmp_path / name, decoder, LoraConfig(rank=4), "tiny")
        remove_lora(decoder)
        saved[name] = tmp_path / name
    options = EngineOptions(4, weights="float32", adapters=saved)
    base = open_model(tmp_path / "tiny", None, options, 64)
    with live(*with_adapters(base, saved).values()) as server:
        said = {name: create(server, name).choices[0].message.content for name in ("tiny", *saved)}
        assert len(set(said.values())) == 3 and server.chat("hello", max_tokens=24)["model"] == "tiny"
        asked = ["tiny", "sums", "poems", "sums"] * 3
        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(lambda name: create(server, name), asked))
        assert [r.choices[0].message.content for r in replies] == [said[name] for name in asked]
        assert len({r.system_fingerprint for r in replies}) == 3 and {r.model for r in replies} == {"tiny", *saved}
        text = [
            server.openai().completions.create(model=m, prompt="hello", temperature=0).choices[0].text for m in said
        ]
        assert len(set(text)) == 3
        vectors = [server.openai().embeddings.create(model=m, input="hello").data[0].embedding for m in said]
        assert vectors[0] != vectors[1] != vectors[2]
        cards = {card["id"]: card for card in server.http().get("/v1/models").json()["data"]}
        assert list(cards) == ["tiny", *saved] and [cards[n].get("parent") for n in cards] == [None, "tiny", "tiny"]
        assert server.http().get("/health").json()["models"] == dict.fromkeys(cards, "ok")
        counted = server.http().get("/metrics").text
        assert 'agartha_running{model="tiny"}' in counted and 'agartha_running{model="sums"}' not in counted
        stats = server.engine.stats()
        assert not (stats.running or stats.waiting or stats.blocks_held)
    with pytest.raises(ConfigError, match="'sums'"):
        with_adapters(replace(base, name="sums"), saved)
