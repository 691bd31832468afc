"""Token probabilities: shades, the rivals on hover and by keys, back to the text."""

import math
import re

import pytest
from driving import ChatPage
from playwright.sync_api import Locator, expect


@pytest.fixture
def reply(chat: ChatPage) -> Locator:
    chat.button("Settings").click()
    chat.page.get_by_label("Token probabilities").check()
    chat.button("Close the settings").click()
    return chat.ask("/think hm\n/say the quick brown fox")


def test_tokens_are_asked_for_and_shown(chat: ChatPage, reply: Locator) -> None:
    assert (chat.bodies[-1]["logprobs"], chat.bodies[-1]["top_logprobs"]) == (True, 5)
    tokens = reply.locator(".token")
    assert "".join(tokens.all_inner_texts()).count("the quick brown fox") == 1
    # the scripted engine gives every token a logprob of -0.25: 77.9 %
    expect(tokens.last).to_have_attribute("aria-label", re.compile(rf"{100 * math.exp(-0.25):.1f} %$"))
    expect(tokens.last).to_have_class(re.compile("shade-1"))


def test_hovering_shows_the_rivals(chat: ChatPage, reply: Locator) -> None:
    reply.locator(".token").last.hover()
    card = reply.locator(".token-card")
    expect(card).to_be_visible()
    expect(card.locator("li")).to_have_count(5)
    expect(card.locator(".chosen .percent")).to_have_text("77.9 %")
    expect(card).to_be_in_viewport(ratio=1)
    chat.page.locator("header.top").hover()
    expect(card).to_be_hidden()


def test_arrow_keys_walk_over_the_tokens(chat: ChatPage, reply: Locator) -> None:
    reply.locator(".tokens").focus()
    chat.page.keyboard.press("Home")
    chat.page.keyboard.press("ArrowRight")
    selected = reply.locator(".token[aria-selected=true]")
    expect(selected).to_have_attribute("data-index", "1")
    expect(reply.locator(".tokens")).to_have_attribute("aria-activedescendant", str(selected.get_attribute("id")))
    expect(reply.locator(".token-card")).to_be_visible()


def test_the_text_is_one_press_away(chat: ChatPage, reply: Locator) -> None:
    switch = chat.button("Token probabilities", reply)
    expect(switch).to_have_attribute("aria-pressed", "true")
    switch.click()
    expect(reply.locator(".answer")).to_have_text("the quick brown fox")
    expect(reply.locator(".tokens")).to_be_hidden()


def test_a_reply_without_probabilities_offers_none(chat: ChatPage) -> None:
    reply = chat.ask("/say plain")
    expect(chat.button("Token probabilities", reply)).to_be_hidden()
