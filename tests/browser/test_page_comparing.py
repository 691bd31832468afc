"""Two models side by side on one prompt."""

from driving import PHONE, ChatPage, open_page
from live import Live
from playwright.sync_api import Browser, expect


def test_one_prompt_goes_to_both_models(chat: ChatPage) -> None:
    chat.button("Compare").click()
    expect(chat.page.get_by_label("Second model")).to_have_value("shadow")
    chat.send("/say lamp")
    chat.done()
    assert sorted(body["model"] for body in chat.bodies) == ["lantern", "shadow"]
    lanes = chat.page.locator(".lane")
    for index, model in enumerate(("lantern", "shadow")):
        expect(lanes.nth(index).locator(".who")).to_have_text(model)
        expect(lanes.nth(index).locator(".answer")).to_have_text("lamp")


def test_each_model_shows_its_own_system_prompt(chat: ChatPage) -> None:
    chat.button("Compare").click()
    origins = chat.page.locator(".plaque .origin")
    expect(origins.nth(0)).to_have_text("put there by the model's template")
    expect(origins.nth(1)).to_have_text("none")


def test_a_conversation_under_way_gets_a_second_model_with_its_history(chat: ChatPage) -> None:
    chat.ask("/say one")
    chat.button("Compare").click()
    expect(chat.replies).to_have_count(2)
    chat.send("/say two")
    chat.done()
    for body in chat.bodies[1:]:
        assert [message["content"] for message in body["messages"]] == ["/say one", "one", "/say two"]


def test_an_edit_reaches_both_and_another_reply_only_one(chat: ChatPage) -> None:
    chat.button("Compare").click()
    chat.send("/say one")
    chat.done()
    chat.button("Edit this prompt").first.click()
    chat.page.get_by_label("Edit the prompt").fill("/say two")
    chat.page.keyboard.press("Enter")
    chat.done()
    expect(chat.page.locator(".answer")).to_have_text(["two", "two"])
    chat.button("Another reply").last.click()
    chat.done()
    assert [body["model"] for body in chat.bodies[4:]] == ["shadow"]


def test_the_second_model_leaves_into_a_conversation_of_its_own(chat: ChatPage) -> None:
    chat.button("Compare").click()
    chat.send("/say lamp")
    chat.done()
    chat.button("Compare").click()
    expect(chat.page.locator(".lane")).to_have_count(1)
    titles = chat.page.locator("#conversations .title")
    expect(titles).to_have_count(2)
    titles.get_by_text("/say lamp · shadow").click()
    expect(chat.page.locator(".who")).to_have_text("shadow")


def test_on_a_phone_the_two_take_turns(chromium: Browser, server: Live) -> None:
    with open_page(chromium, server.url, PHONE) as chat:
        chat.ready()
        chat.button("Compare").click()
        chat.send("/say lamp")
        chat.done()
        lanes = chat.page.locator(".lane")
        expect(lanes.nth(0)).to_be_visible()
        expect(lanes.nth(1)).to_be_hidden()
        chat.button("Second").click()
        expect(lanes.nth(0)).to_be_hidden()
        expect(lanes.nth(1).locator(".answer")).to_have_text("lamp")
