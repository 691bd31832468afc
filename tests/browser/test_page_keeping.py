"""Conversations stay in the browser: list, rename, delete, export, import."""

import json
from pathlib import Path

from driving import ChatPage
from playwright.sync_api import expect


def titles(chat: ChatPage):
    return chat.page.locator("#conversations .title")


def test_conversations_outlive_a_reload_with_their_branches(chat: ChatPage) -> None:
    chat.ask("/say kept")
    chat.button("Another reply").click()
    chat.done()
    chat.ready()
    titles(chat).first.click()
    expect(chat.replies.last.locator(".answer")).to_have_text("kept")
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")


def test_a_new_conversation_begins_empty_and_the_old_one_can_be_opened(chat: ChatPage) -> None:
    chat.ask("/say first")
    chat.button("New conversation").click()
    expect(chat.replies).to_have_count(0)
    expect(chat.page.get_by_label("Message", exact=True)).to_be_focused()
    chat.ask("/say second")
    expect(titles(chat)).to_have_text(["/say second", "/say first"])
    titles(chat).last.click()
    expect(chat.replies.last).to_contain_text("first")


def test_a_reply_goes_on_while_one_reads_another_conversation(chat: ChatPage) -> None:
    chat.send("/slow 40\n/say one two three four five six")
    chat.button("New conversation").click()
    expect(chat.button("Send")).to_be_visible()
    chat.ask("/say meanwhile")
    titles(chat).get_by_text("/slow 40").click()
    chat.done()
    expect(chat.replies.last.locator(".answer")).to_have_text("one two three four five six")


def test_a_conversation_is_renamed(chat: ChatPage) -> None:
    chat.ask("/say x")
    chat.button("Options of /say x").click()
    chat.page.get_by_label("Title").fill("Lamps")
    chat.page.keyboard.press("Enter")
    expect(titles(chat)).to_have_text(["Lamps"])
    expect(chat.page.locator("#title")).to_have_text("Lamps")
    chat.ready()
    expect(titles(chat)).to_have_text(["Lamps"])


def test_what_is_deleted_while_it_is_answered_does_not_come_back(chat: ChatPage) -> None:
    chat.send("/slow 40\n/say one two three four five six")
    expect(chat.button("Stop")).to_be_visible()
    chat.button("Options of /slow 40").click()
    chat.button("Delete").click()
    chat.button("Delete for good?").click()
    expect(titles(chat)).to_have_count(0)
    chat.page.wait_for_timeout(500)  # longer than the whole reply would have taken
    chat.ready()
    expect(titles(chat)).to_have_count(0)


def test_deleting_asks_first_and_then_forgets(chat: ChatPage) -> None:
    chat.ask("/say gone")
    chat.button("Options of /say gone").click()
    chat.button("Delete").click()
    expect(titles(chat)).to_have_count(1)
    chat.button("Delete for good?").click()
    expect(titles(chat)).to_have_count(0)
    expect(chat.replies).to_have_count(0)
    chat.ready()
    expect(titles(chat)).to_have_count(0)


def test_markdown_holds_the_branch_that_is_shown(chat: ChatPage) -> None:
    chat.ask("/think hm\n/say **yes**")
    chat.page.locator("#title").click()
    with chat.page.expect_download() as download:
        chat.button("Export as Markdown").click()
    assert download.value.suggested_filename.endswith(".md")
    text = Path(download.value.path()).read_text()
    assert "## You" in text and "## lantern" in text and "**yes**" in text and "<summary>Thinking</summary>" in text


def test_what_is_exported_can_be_imported_with_all_branches(chat: ChatPage, tmp_path: Path) -> None:
    chat.ask("/think hm\n/say one")
    chat.button("Another reply").click()
    chat.done()
    with chat.page.expect_download() as download:
        chat.button("Export all").click()
    download.value.save_as(tmp_path / "all.json")
    chat.button("Options of /think hm").click()
    chat.button("Delete").click()
    chat.button("Delete for good?").click()
    chat.page.locator("#import-file").set_input_files(tmp_path / "all.json")
    expect(titles(chat)).to_have_text(["/think hm"])
    expect(chat.replies.last.locator(".answer")).to_have_text("one")
    expect(chat.replies.last.locator(".branches")).to_contain_text("2 / 2")
    chat.ask("/say two")
    assert [message["content"] for message in chat.bodies[-1]["messages"]] == ["/think hm\n/say one", "one", "/say two"]


def test_a_file_of_something_else_is_refused_in_words(chat: ChatPage, tmp_path: Path) -> None:
    lane = {"model": "m", "nodes": {"a": {"role": "user", "content": "x", "parent": "root"}}, "chosen": {}}
    loop = {**lane, "children": {"root": ["a"], "a": ["a"]}}
    form = {"format": "agartha.conversations", "version": 1}
    cases = {
        "This file is not JSON.": "{",
        "This file holds no agartha.conversations.": "[1, 2]",
        "Conversation 1 cannot be read": json.dumps({**form, "conversations": [{"title": "x"}]}),
        "a message is in two places": json.dumps({**form, "conversations": [{"title": "x", "lanes": [loop]}]}),
    }
    for words, text in cases.items():
        (tmp_path / "file.json").write_text(text)
        chat.page.locator("#import-file").set_input_files(tmp_path / "file.json")
        expect(chat.page.locator("#import-wrong")).to_contain_text(words)
    expect(titles(chat)).to_have_count(0)


def test_another_tab_sees_the_list_change(chat: ChatPage) -> None:
    other = ChatPage(chat.page.context.new_page(), chat.url)
    other.ready()
    chat.ask("/say shared")
    expect(titles(other)).to_have_text(["/say shared"])
    other.check()
