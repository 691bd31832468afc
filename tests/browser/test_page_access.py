"""For everyone: axe, keyboard only, screen readers, dark and light, reduced motion, a phone's width."""

from pathlib import Path

import pytest
from driving import DESKTOP, PHONE, ChatPage, open_page
from live import Live
from playwright.sync_api import Browser, expect

AXE = (Path(__file__).parent / "axe.min.js").read_text()
RICH = (
    "/think a while\n/say # A title\n\nText, `code`, [a link](https://example.org) and $x^2$.\n\n"
    "```python\nx = 1  # one\n```\n\n| a |\n|---|\n| 1 |"
)


def violations(chat: ChatPage) -> list[str]:
    """What axe finds serious or critical. Runs through the debugger, which the page's policy does not bind."""
    chat.page.wait_for_timeout(300)
    chat.page.evaluate(f"(() => {{ {AXE} }})()")
    found = chat.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in serious for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(chromium: Browser, server: Live, scheme, size) -> None:
    with open_page(chromium, server.url, size, color_scheme=scheme, reduced_motion="reduce") as chat:
        chat.ready()
        assert violations(chat) == []  # the empty page
        chat.button("Settings").click()
        chat.page.get_by_label("Temperature", exact=True).fill("9")
        assert violations(chat) == []
        chat.page.get_by_label("Temperature", exact=True).fill("")
        chat.button("Close the settings").click()
        chat.ask(RICH)
        chat.replies.last.locator("summary").click()
        chat.button("Another reply").click()
        chat.done()
        assert violations(chat) == []
        chat.send("/fail\n/say one two three four")
        expect(chat.page.locator(".notice.failed")).to_be_visible()
        assert violations(chat) == []
        for opener in ("Keyboard shortcuts", "Exact prompt", "Edit"):
            chat.button(opener).last.click()
            assert violations(chat) == []
            chat.page.keyboard.press("Escape")
        chat.button("Compare").click()
        assert violations(chat) == []


def test_axe_finds_nothing_serious_in_tokens_and_banners(chromium: Browser, server: Live) -> None:
    for scheme in ("light", "dark"):
        with open_page(chromium, server.url, color_scheme=scheme, reduced_motion="reduce") as chat:
            chat.ready()
            chat.button("Settings").click()
            chat.page.get_by_label("Token probabilities").check()
            chat.ask("/think hm\n/say the quick brown fox").locator(".tokens").focus()
            assert violations(chat) == []
            chat.page.route("**/v1/models", lambda route: route.abort())
            chat.page.evaluate("dispatchEvent(new Event('online'))")
            expect(chat.page.locator("#connection")).to_be_visible()
            assert violations(chat) == []


def test_everything_is_reached_and_done_by_keyboard(chat: ChatPage) -> None:
    keys, page = chat.page.keyboard, chat.page
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    keys.type("/say one")
    keys.press("Enter")
    chat.done()
    page.locator("body").click(position={"x": 640, "y": 5})
    keys.press("r")
    chat.done()
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")
    keys.press("[")
    expect(chat.replies.last.locator(".branches")).to_contain_text("1 / 2")
    keys.press("]")
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")
    keys.press("e")
    expect(page.get_by_label("Edit the prompt")).to_be_focused()
    keys.press("Control+a")
    keys.type("/say two")
    keys.press("Enter")
    chat.done()
    expect(chat.replies.last.locator(".answer")).to_have_text("two")
    keys.press("k")
    keys.press("k")
    expect(page.locator(".message.user")).to_be_focused()
    keys.press("j")
    expect(chat.replies.last).to_be_focused()
    keys.press("s")
    expect(page.locator("#settings-title")).to_be_focused()
    keys.press("Escape")
    expect(chat.button("Settings")).to_be_focused()
    keys.press("/")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    keys.type("n?r")  # text stays text
    expect(page.get_by_label("Message", exact=True)).to_have_value("n?r")
    page.locator("body").click(position={"x": 640, "y": 5})
    keys.press("n")
    expect(chat.replies).to_have_count(0)


def test_help_lists_the_keys_and_can_switch_them_off(chat: ChatPage) -> None:
    chat.page.locator("body").click(position={"x": 640, "y": 5})
    chat.page.keyboard.press("?")
    dialog = chat.page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_contain_text("Another reply")
    dialog.get_by_label("Single keys work outside of text fields").uncheck()
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    chat.page.locator("body").click(position={"x": 640, "y": 5})
    chat.page.keyboard.press("?")
    expect(dialog).to_be_hidden()
    chat.button("Keyboard shortcuts").click()
    expect(dialog).to_be_visible()


def test_every_control_shows_the_focus(chat: ChatPage) -> None:
    chat.ask(RICH)
    seen = []
    for _ in range(60):
        chat.page.keyboard.press("Tab")
        focus = chat.page.evaluate(
            """() => { const node = document.activeElement; const box = node.closest('.write') ?? node;
            const name = node.getAttribute('aria-label') ?? node.textContent.trim().slice(0, 30);
            return [name, getComputedStyle(box).outlineStyle, node.tagName, node.getBoundingClientRect().height > 0]; }"""
        )
        if focus[2] == "BODY":
            continue  # the end of the page: from here to its beginning
        assert focus[1] != "none" and focus[3], focus
        seen.append(focus[0])
    for name in ("Compare", "Edit", "Exact prompt", "Copy code", "Another reply", "Copy this reply", "Message"):
        assert name in seen, seen


def test_a_screen_reader_hears_the_reply_once_and_whole(chat: ChatPage) -> None:
    log = chat.page.get_by_role("log")
    assert log.get_attribute("aria-live") == "polite"
    chat.send("/slow 150\n/say the quick brown fox jumps")
    expect(chat.replies.last).to_contain_text("quick")
    assert "quick" not in log.inner_text()
    chat.done()
    expect(log.locator("p").last).to_have_text("Reply finished, lantern: the quick brown fox jumps")


def test_dark_and_light_follow_the_system_until_one_chooses(chromium: Browser, server: Live) -> None:
    with open_page(chromium, server.url, color_scheme="dark") as chat:
        chat.ready()
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = chat.page.evaluate(ground)
        chat.button("Use the light theme").click()
        assert chat.page.evaluate(ground) != dark
        chat.ready()
        expect(chat.button("Use the dark theme")).to_be_visible()
        chat.page.emulate_media(color_scheme="light")
        chat.button("Use the dark theme").click()
        assert chat.page.evaluate(ground) == dark


def test_reduced_motion_is_respected(chromium: Browser, server: Live) -> None:
    moving = "document.getAnimations().length"
    for motion, still in (("reduce", True), ("no-preference", False)):
        with open_page(chromium, server.url, reduced_motion=motion) as chat:
            chat.ready()
            chat.send("/slow 100\n/say one two three four five")
            expect(chat.page.locator(".message.lit")).to_be_visible()
            assert (chat.page.evaluate(moving) == 0) is still
            chat.page.keyboard.press("Escape")


def test_a_phone_shows_everything_without_scrolling_sideways(chromium: Browser, server: Live) -> None:
    with open_page(chromium, server.url, PHONE, has_touch=True) as chat:
        chat.ready()
        chat.ask(RICH + "\n\n" + "a" * 300 + "\n\n```\n" + "b" * 300 + "\n```")
        parts = "body, main, #thread, .lane, .message, .top, #composer"
        wide = f"[...document.querySelectorAll('{parts}')].filter(node => node.scrollWidth > 360)"
        assert chat.page.evaluate(f"{wide}.length") == 0
        expect(chat.page.locator(".plaque-text")).to_be_in_viewport()
        chat.button("Conversations").click()
        expect(chat.page.locator("#sidebar")).to_be_in_viewport()
        chat.button("New conversation", chat.page.locator("#sidebar")).click()
        expect(chat.page.locator("#sidebar")).to_be_hidden()
        chat.button("Settings").click()
        expect(chat.page.get_by_label("Temperature", exact=True)).to_be_in_viewport()
        shown = "[...document.querySelectorAll('button')].filter(node => node.offsetParent)"
        small = f"{shown}.filter(node => Math.min(node.offsetWidth, node.offsetHeight) < 20)"
        assert chat.page.evaluate(f"{small}.map(n => n.textContent)") == []
