"""Talking to a model: stream, stop, another reply, branches, thinking, code, maths, the system prompt, settings."""

import re

from driving import ChatPage
from playwright.sync_api import expect


def test_a_reply_comes_as_a_stream(chat: ChatPage) -> None:
    chat.send("/slow 60\n/say one two three four five six seven eight nine ten")
    reply = chat.replies.last
    expect(reply).to_have_attribute("aria-busy", "true")
    expect(reply).to_contain_text("one two")
    assert "ten" not in reply.inner_text()  # a part is on the page before the whole exists
    chat.done()
    expect(reply.locator(".answer")).to_have_text("one two three four five six seven eight nine ten")
    expect(reply).to_have_attribute("aria-busy", "false")
    expect(reply.locator(".numbers")).to_have_text(
        re.compile(r"^\d+ tokens · [\d.]+ per second · first after [\d.]+ s$")
    )


def test_stop_keeps_what_was_said_and_frees_the_engine(chat: ChatPage, server) -> None:
    chat.send("/slow 80\n/say " + "word " * 300)
    expect(chat.replies.last).to_contain_text("word word")
    chat.button("Stop").click()
    expect(chat.replies.last.locator(".notice")).to_have_text("Stopped.")
    expect(chat.replies.last).to_contain_text("word word")
    expect(chat.page.get_by_label("Message", exact=True)).to_be_focused()
    chat.page.wait_for_timeout(400)
    assert not server.engine.has_work


def test_another_reply_becomes_a_sibling_and_arrows_move_between_them(chat: ChatPage) -> None:
    first = chat.ask("hello").locator(".answer").inner_text()
    chat.button("Another reply").click()
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")
    chat.done()
    second = chat.replies.last.locator(".answer").inner_text()
    assert second.startswith("You said: hello") and second != first  # the engine draws a number from the seed
    chat.button("Previous branch").click()
    expect(chat.replies.last.locator(".answer")).to_have_text(first)
    expect(chat.button("Previous branch")).to_be_disabled()
    chat.button("Next branch").click()
    expect(chat.replies.last.locator(".answer")).to_have_text(second)


def test_an_edited_prompt_is_a_branch_with_its_own_replies(chat: ChatPage) -> None:
    chat.ask("/say first answer")
    chat.ask("/say follow-up answer")
    chat.button("Edit this prompt").first.click()
    chat.page.get_by_label("Edit the prompt").fill("/say another answer")
    chat.button("Send as a new branch").click()
    chat.done()
    expect(chat.replies).to_have_count(1)
    expect(chat.replies.last).to_contain_text("another answer")
    assert [message["content"] for message in chat.bodies[-1]["messages"]] == ["/say another answer"]
    chat.button("Previous branch").click()
    expect(chat.replies).to_have_count(2)
    expect(chat.replies.last).to_contain_text("follow-up answer")


def test_leaving_an_edit_changes_nothing(chat: ChatPage) -> None:
    chat.ask("/say yes")
    chat.button("Edit this prompt").click()
    chat.page.get_by_label("Edit the prompt").fill("something else")
    chat.page.keyboard.press("Escape")
    expect(chat.prompts).to_have_text("/say yes")
    expect(chat.button("Edit this prompt")).to_be_focused()
    assert len(chat.bodies) == 1


def test_a_conversation_is_sent_as_a_whole(chat: ChatPage) -> None:
    chat.ask("/say one")
    chat.ask("/say two")
    sent = [(message["role"], message["content"]) for message in chat.bodies[-1]["messages"]]
    assert sent == [("user", "/say one"), ("assistant", "one"), ("user", "/say two")]


def test_thinking_is_folded_with_its_time(chat: ChatPage) -> None:
    chat.send("/slow 25\n/think it is about lamps and arches\n/say Lit.")
    expect(chat.replies.last.locator("summary")).to_contain_text("Thinking…")
    chat.done()
    summary = chat.replies.last.locator("summary")
    expect(summary).to_have_text(re.compile(r"^Thought for [0-9.]+ s$"))
    assert 0.1 < float(summary.inner_text().split()[2]) < 10
    thoughts = chat.page.get_by_text("it is about lamps and arches", exact=True)
    expect(thoughts).not_to_be_visible()
    summary.click()
    expect(thoughts).to_be_visible()
    expect(chat.replies.last.locator(".answer")).to_have_text("Lit.")


def test_code_has_its_language_colours_and_a_copy_button(chat: ChatPage) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=chat.url)
    code = "def f(x):\n    return x  # same"
    reply = chat.ask(f"/say Here:\n\n```python\n{code}\n```")
    expect(reply.locator(".code-bar span")).to_have_text("python")
    expect(reply.locator(".hljs-keyword").first).to_have_text("def")
    chat.button("Copy code", reply).click()
    expect(chat.page.locator("#announcer p").last).to_have_text("Copied.")
    assert chat.page.evaluate("navigator.clipboard.readText()") == code + "\n"


def test_maths_becomes_mathml_and_money_stays_money(chat: ChatPage) -> None:
    reply = chat.ask(
        "/say It costs $5 or $6. Then $x^2 + \\frac{1}{y}$ and \\(a \\le b\\), and\n\n"
        "$$\\sum_{i=1}^n i = \\frac{n(n+1)}{2}$$\n\nand $\\nonsense{$."
    )
    expect(reply.locator("math")).to_have_count(3)
    expect(reply.locator("math mfrac")).to_have_count(2)
    expect(reply.locator("math[display=block]")).to_have_count(1)
    expect(reply).to_contain_text("It costs $5 or $6.")
    expect(reply.locator(".answer")).to_contain_text("\\nonsense{")


def test_markdown_is_rendered(chat: ChatPage) -> None:
    reply = chat.ask("/say # Title\n\n1. **bold**\n2. `code`\n\n> quote\n\n| a | b |\n|---|:-:|\n| 1 | 2 |")
    for selector in ("h3", "ol > li", "strong", "code", "blockquote", "table td"):
        expect(reply.locator(f".answer {selector}").first).to_be_visible()


def test_the_system_prompt_of_the_template_is_in_plain_sight(chat: ChatPage) -> None:
    plaque = chat.page.locator(".plaque")
    expect(plaque.locator(".origin")).to_have_text("put there by the model's template")
    expect(plaque).to_contain_text("<|im_start|>system\nYou are Lantern, made of tests.<|im_end|>", use_inner_text=True)
    chat.page.get_by_label("Model", exact=True).select_option("shadow")
    expect(plaque.locator(".origin")).to_have_text("none")


def test_the_system_prompt_stays_visible_while_one_reads(chat: ChatPage) -> None:
    for _ in range(4):
        chat.ask("/say " + "line\n\n" * 15)
    assert chat.page.locator("#thread").evaluate("node => node.scrollTop") > 300
    expect(chat.page.locator(".plaque-text")).to_be_in_viewport(ratio=1)


def test_ones_own_system_prompt_is_sent_and_marked(chat: ChatPage) -> None:
    chat.button("Edit").click()
    chat.page.locator("#system-text").fill("Answer like a lighthouse.")
    chat.button("Save").click()
    expect(chat.page.locator(".plaque .origin")).to_have_text("yours")
    expect(chat.page.locator(".plaque mark")).to_have_text("Answer like a lighthouse.")
    chat.ask("/say blink")
    assert chat.bodies[-1]["messages"][0] == {"role": "system", "content": "Answer like a lighthouse."}


def test_a_system_prompt_left_unsaved_is_not_used(chat: ChatPage) -> None:
    chat.button("Edit").click()
    chat.page.locator("#system-text").fill("Never this.")
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator(".plaque .origin")).to_have_text("put there by the model's template")


def test_the_exact_prompt_is_shown_as_rendered(chat: ChatPage) -> None:
    chat.ask("/say lamp")
    chat.page.get_by_label("Message", exact=True).fill("and now?")
    chat.button("Exact prompt").click()
    whole = (
        "<|im_start|>system\nYou are Lantern, made of tests.<|im_end|>\n<|im_start|>user\n/say lamp<|im_end|>\n"
        "<|im_start|>assistant\nlamp<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    )
    expect(chat.page.locator("#prompt-count")).to_have_text(
        re.compile(r"With the message you are writing: \d+ tokens for lantern\.")
    )
    assert chat.page.locator("#prompt-text").text_content() == whole


def test_sampling_settings_reach_the_server(chat: ChatPage) -> None:
    chat.button("Settings").click()
    values = {"Temperature": "0.7", "Top p": "0.9", "Top k": "40", "Min p": "0.05", "Max tokens": "50", "Seed": "11"}
    for label, value in values.items():
        chat.page.get_by_label(label, exact=True).fill(value)
    chat.page.get_by_role("textbox", name="Stop", exact=True).fill("END\n\\n\\n")
    chat.ask("/say before END after")
    body = chat.bodies[-1]
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 50, "seed": 11}
    assert {name: body[name] for name in wanted} == wanted and body["stop"] == ["END", "\n\n"]
    expect(chat.replies.last.locator(".answer")).to_have_text("before")


def test_the_thinking_budget_reaches_the_server(chat: ChatPage) -> None:
    chat.button("Settings").click()
    chat.page.get_by_label("Thinking budget", exact=True).fill("20")
    chat.ask("/think hm\n/say yes")
    assert chat.bodies[-1]["thinking_budget"] == 20


def test_the_same_seed_gives_the_same_reply(chat: ChatPage) -> None:
    chat.button("Settings").click()
    chat.page.get_by_label("Seed", exact=True).fill("5")
    first = chat.ask("hello").locator(".answer").inner_text()
    chat.button("Another reply").click()
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")
    chat.done()
    expect(chat.replies.last.locator(".answer")).to_have_text(first)


def test_a_wrong_setting_is_named_and_not_sent(chat: ChatPage) -> None:
    chat.button("Settings").click()
    field = chat.page.get_by_label("Temperature", exact=True)
    field.fill("9")
    expect(chat.page.locator("#sampling-temperature-wrong")).to_have_text("Temperature must be at most 2.")
    expect(field).to_have_attribute("aria-invalid", "true")
    chat.ask("hello")
    assert "temperature" not in chat.bodies[-1]
    field.fill("")
    field.press("ArrowUp")
    expect(field).to_have_value("0")
    chat.button("Empty all fields").click()
    expect(field).to_have_value("")


def test_settings_outlive_a_reload(chat: ChatPage) -> None:
    chat.button("Settings").click()
    chat.page.get_by_label("Top k", exact=True).fill("7")
    chat.ready()
    chat.ask("hello")
    assert chat.bodies[-1]["top_k"] == 7


def test_a_reply_that_was_cut_off_says_so(chat: ChatPage) -> None:
    chat.button("Settings").click()
    chat.page.get_by_label("Max tokens", exact=True).fill("3")
    expect(chat.ask("/say one two three four five six seven").locator(".notice")).to_contain_text("Cut off")
