"""The page at / of the proxy, in headless Chromium on the real proxy with the fake guard."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakes import SAFE, UNSAFE, UNSAFE_REPLY, make_guard

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from guardrail import Guardrail  # noqa: E402
from guardrail.integrations.proxy import ProxySettings, create_app  # noqa: E402

FOLDER = Path(__file__).parent.parent / "integrations" / "proxy" / "playground"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
KEY = "a-key-of-the-test"
VERDICT = {
    "action": "allow",
    "flagged": False,
    "probability": 0.2,
    "level": "casual",
    "status": "ok",
    "reason": "",
    "rules": [],
    "touched": [],
}


# --- what it runs on -----------------------------------------------------------------------------


@contextmanager
def serving(guard: Guardrail, **settings: object) -> Iterator[str]:
    """Run the proxy in a thread; the upstream is never asked."""
    app = create_app(guard, ProxySettings.of(upstream="http://127.0.0.1:9/v1", playground=True, **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_guard()) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Heard:
    """What a page said and asked for."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.hosts: set[str] = set()
        self.dialogs: list[str] = []
        self.paths: list[str] = []

    def listen(self, page) -> None:
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", self._request)
        page.on("dialog", self._dialog)

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data":
            self.hosts.add(parts.netloc)
            self.paths.append(parts.path)

    def _dialog(self, dialog) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def refused(self) -> None:
        """Forget the lines that Chromium itself writes for an answer with an error status."""
        self.messages = [text for text in self.messages if not text.startswith("Failed to load resource")]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def visit(browser, url, heard) -> Iterator[Callable]:
    """Return a function that opens the page; at the end no page may have said anything or gone elsewhere."""
    contexts = []
    hosts = set()

    def open_page(address: str = url, before=None, **options):
        options.setdefault("viewport", {"width": 1280, "height": 860})
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        heard.listen(page)
        if before:
            before(page)
        hosts.add(urlsplit(address).netloc)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard.messages == []
    assert heard.dialogs == []
    assert heard.hosts <= hosts


def expect(thing):
    from playwright.sync_api import expect as wait_for

    return wait_for(thing)


def say(page, *turns: str) -> None:
    """Put a conversation into the page: user and assistant in turn."""
    page.get_by_text("Paste a conversation").click()
    page.fill("#paste-text", "\n".join(turns))
    page.get_by_role("button", name="Use this text").click()
    page.get_by_text("Paste a conversation").click()


def judged(page, count: int) -> None:
    expect(page.locator("#status")).to_contain_text(re.compile(f"^{count} turns? judged"))


def answer(body: object, status: int = 200, **headers: str) -> Callable:
    text = body if isinstance(body, str) else json.dumps(body)

    def fulfil(route) -> None:
        route.fulfill(status=status, headers={"Content-Type": "application/json", **headers}, body=text)

    return fulfil


# --- without a browser ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_every_file_is_served_with_strict_headers(url, name):
    path = "/" if name == "index.html" else f"/playground/{name}"
    found = httpx.get(url + path)
    assert found.status_code == 200
    kind = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}[Path(name).suffix]
    assert found.headers["content-type"].startswith(kind)
    policy = found.headers["content-security-policy"]
    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path", ["/playground/", "/playground/page.py", "/playground/..%2fapp.py", "/playground"]
)
def test_nothing_else_is_served(url, path):
    assert httpx.get(url + path).status_code == 404


def test_the_page_needs_no_key_and_is_off_unless_asked_for():
    with serving(make_guard(), api_keys=(KEY,)) as address:
        assert httpx.get(address).status_code == 200
        assert httpx.post(f"{address}/check", json={"messages": SAFE}).status_code == 401
    app = create_app(make_guard(), ProxySettings.of(upstream="http://127.0.0.1:9/v1"))
    assert not [route for route in app.routes if getattr(route, "path", "") == "/"]


def colours(scheme: str) -> dict[str, str]:
    """Return the variables of style.css; the dark ones stand in the second :root."""
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text("utf-8"), re.DOTALL)
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(found) == 2
    assert found[0].keys() == found[1].keys()
    return found[scheme == "dark"]


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_fields_can_be_told_from_their_ground(scheme):
    known = colours(scheme)
    grounds = ("ground", "card", "assistant")
    texts = [(text, ground) for text in ("ink", "soft", "accent") for ground in grounds]
    texts += [(kind, f"{kind}-ground") for kind in ("allow", "caution", "intervene", "error")]
    texts += [("on-accent", "accent"), ("intervene", "card")]
    parts = [("border", ground) for ground in grounds]
    parts += [(kind, "track") for kind in ("allow", "caution", "intervene")]
    parts += [(kind, ground) for kind in ("caution", "intervene") for ground in grounds]
    low = [pair for pair in texts if contrast(known[pair[0]], known[pair[1]]) < 4.5]
    low += [pair for pair in parts if contrast(known[pair[0]], known[pair[1]]) < 3]
    assert low == []


# --- judging -------------------------------------------------------------------------------------


def test_an_example_is_judged_on_opening(visit):
    page = visit()
    judged(page, 2)
    turns = page.locator("#turns > li")
    expect(turns).to_have_count(2)
    expect(turns.first.locator(".badge")).to_have_text("Allow")
    expect(turns.first.locator(".badge .icon")).to_be_visible()
    expect(page.locator(".mark")).to_have_count(2)  # where a turn is flagged, as the guard has it
    expect(page.locator("#flagged-from")).to_contain_text(f"From {100 * make_guard().thresholds.caution:.0f}")
    expect(page.locator("#repair")).to_contain_text("nothing to repair")


def test_each_turn_gets_its_verdict_and_an_unsafe_last_one_its_repair(visit):
    page = visit()
    say(page, "had beer", UNSAFE_REPLY)
    judged(page, 2)
    last = page.locator("#turns > li").last
    expect(last.locator(".badge")).to_have_text("Caution")
    expect(last.locator(".number")).to_have_text(re.compile(r"^>?\d\d.% likely unsafe$"))
    expect(last.locator(".level")).to_have_text("level: needs caution")
    expect(last.locator(".rules")).to_contain_text("You shouldn't drive after beer")
    expect(last.locator(".facts").first).to_have_text(
        re.compile(r"driving · similarity 0\.\d\d · probability [<>]?\d+.%")
    )
    filled = last.locator(".fill").evaluate("bar => bar.offsetWidth / bar.parentNode.offsetWidth")
    shown = int(re.search(r"\d+", last.locator(".number").inner_text()).group()) / 100
    assert filled == pytest.approx(shown, abs=0.02)
    expect(page.locator("#repair")).to_contain_text("In place of the last turn:")
    expect(page.locator("#repair")).to_contain_text("Strategy: composed")


def test_a_repair_can_be_put_in_place(visit):
    page = visit()
    say(page, "had beer", UNSAFE_REPLY)
    said = page.locator("#repair blockquote").inner_text()
    page.get_by_role("button", name="Put it in place").click()
    expect(page.locator("#turns textarea").last).to_have_value(said)
    expect(page.locator("#turns > li").last.locator(".badge")).to_have_text("Allow")
    expect(page.locator("#repair")).to_contain_text("nothing to repair")
    page.get_by_role("button", name="Show one all the same").click()
    expect(page.locator("#repair blockquote")).to_be_visible()


def test_a_repair_answers_a_user(visit):
    page = visit()
    say(page, UNSAFE)
    expect(page.locator("#repair")).to_contain_text("As the reply to the last turn:")
    said = page.locator("#repair blockquote").inner_text()
    page.get_by_role("button", name="Put it in as the reply").click()
    judged(page, 2)
    expect(page.get_by_label("Text of turn 2, assistant")).to_have_value(said)


def test_typing_asks_once_and_an_older_answer_is_dropped(visit, heard):
    held = []

    def hold_the_first(page) -> None:
        def handle(route) -> None:
            if len(held) < 1:
                held.append(route)  # never answered
            else:
                route.continue_()

        page.route("**/check", handle)

    page = visit(before=hold_the_first)
    expect(page.locator("#status")).to_have_text("Judging …")
    while not held:
        page.wait_for_timeout(20)
    with page.expect_event("requestfailed") as failed:  # given up, since its text is no longer there
        page.get_by_label("Text of turn 1, user").press_sequentially(" and more", delay=20)
    assert failed.value.url.endswith("/check")
    judged(page, 2)
    assert heard.paths.count("/check") == 2


def test_what_was_edited_is_never_shown_with_its_old_verdict(visit):
    page = visit()
    say(page, UNSAFE)
    judged(page, 1)
    page.route("**/check", lambda route: None)  # hangs
    page.get_by_label("Text of turn 1, user").fill(SAFE)
    expect(page.locator("#turns > li")).to_have_class(re.compile("stale"))
    expect(page.locator("#repair")).to_have_class("stale")


def test_moving_a_turn_does_not_refresh_an_old_verdict(visit):
    page = visit()
    say(page, UNSAFE, SAFE, SAFE)
    judged(page, 3)
    page.route("**/check", lambda route: None)  # hangs
    page.get_by_label("Text of turn 1, user").fill(SAFE)
    page.get_by_role("button", name="Move turn 3 up").click()
    expect(page.locator("#turns > li").first).to_have_class("stale")


def test_blank_turns_are_not_judged(visit):
    page = visit()
    say(page, UNSAFE)
    page.get_by_role("button", name="Add a turn").click()
    page.get_by_role("button", name="Judge now").click()
    judged(page, 1)
    expect(page.locator("#turns > li").last.locator(".badge")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#status")).to_contain_text("Type something")
    expect(page.locator(".badge")).to_have_count(0)


PARTLY_READ = {
    "turns_given": 5,
    "turns_read": 3,
    "tokens_given": 900,
    "tokens_read": 512,
    "judged_turn_read": True,
    "parts_skipped": 0,
    "complete": False,
}
INCOMPLETE = [
    ({"status": "error", "reason": "ModelError"}, "Not judged", "The guard failed"),
    ({"status": "degraded", "reason": "no second opinion"}, "Allow", "Degraded: no second opinion"),
    ({"judged_by": "judge"}, "Allow", "second opinion"),
    ({"coverage": PARTLY_READ}, "Allow", "3 of 5 turns, 512 of 900 tokens"),
]


def test_a_verdict_says_what_is_missing(visit):
    page = visit()
    for change, badge, remark in INCOMPLETE:
        page.route("**/check", answer({"verdicts": [VERDICT | change] * 2}))
        page.get_by_role("button", name="Judge now").click()
        last = page.locator("#turns > li").last
        expect(last.locator(".remark")).to_contain_text(remark)
        expect(last.locator(".badge")).to_have_text(badge)


# --- failures ------------------------------------------------------------------------------------

BUSY = {"error": {"message": "busy", "type": "overloaded"}}


FAILURES = [
    (answer(BUSY, 503, **{"Retry-After": "7"}), "The server is busy. Please try again in 7 s."),
    (answer(BUSY, 429), "The server is busy. Please try again."),
    (answer({"error": {"message": "too many turns"}}, 400), "too many turns"),
    (answer({"error": {"message": MARKUP}}, 400), MARKUP),
    (answer("<h1>Bad gateway</h1>", 502), "answered with an error (502)"),
    (answer("no json"), "could not be read"),
    (answer("null"), "could not be read"),
    (answer({"verdicts": [VERDICT]}), "could not be read"),  # one verdict for two turns
    (answer({"verdicts": [VERDICT, {}]}), "could not be read"),
    (answer({"verdicts": [VERDICT, VERDICT | {"action": "fine"}]}), "could not be read"),
    (answer({"verdicts": [VERDICT, VERDICT | {"probability": None}]}), "could not be read"),
    (lambda route: route.abort(), "cannot be reached"),
]


def test_a_failure_is_said_and_leaves_no_verdict(visit, heard):
    page = visit()
    alert = page.get_by_role("alert")
    for reply, said in FAILURES:
        judged(page, 2)
        expect(alert).to_be_empty()
        page.route("**/check", reply)
        page.get_by_role("button", name="Judge now").click()
        expect(alert).to_contain_text(f"Not judged. {said}" if "busy" in said else said)
        expect(page.locator("#turns .badge")).to_have_count(0)
        expect(page.locator("#repair")).to_contain_text("No repair")
        assert page.locator("img, body script").count() == 0
        page.unroute("**/check")
        page.get_by_role("button", name="Judge now").click()
    heard.refused()


def test_a_failed_repair_leaves_the_verdicts(visit, heard):
    page = visit(before=lambda page: page.route("**/repair", answer(BUSY, 503)))
    say(page, UNSAFE)
    expect(page.locator("#repair")).to_contain_text("No repair. The server is busy.")
    expect(page.locator("#turns .badge")).to_have_text(re.compile("Caution|Intervene"))
    heard.refused()


def test_a_key_is_asked_for_and_kept_in_memory_only(visit, heard):
    with serving(make_guard(), api_keys=(KEY,)) as address:
        page = visit(address)
        expect(page.get_by_role("alert")).to_contain_text("access key")
        heard.refused()
        field = page.get_by_label("Only if this server asks for one")
        field.fill(KEY)  # the place for it has opened by itself
        with page.expect_request("**/check") as sent:
            field.press("Enter")
        assert sent.value.headers["authorization"] == f"Bearer {KEY}"
        judged(page, 2)
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("access key")
        heard.refused()


# --- pasting, markup, rules ----------------------------------------------------------------------


PASTED = [
    ("user: hi\nassistant: hello", [("user", "hi"), ("assistant", "hello")]),
    ("Human: hi\nthere\n\nAI: hello", [("user", "hi\nthere"), ("assistant", "hello")]),
    ("one\n\ntwo\nthree", [("user", "one"), ("assistant", "two"), ("user", "three")]),
    ("assistant: hello\nassistant: again", [("assistant", "hello"), ("assistant", "again")]),
    (
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        [("user", "hi")],
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image"}]}]},
        [("user", "hi")],
    ),
    (["one", "two"], [("user", "one"), ("assistant", "two")]),
]
NOT_PASTED = [
    ('[{"role": "user", ', "cannot be read"),
    ('[{"role": "martian", "content": "x"}]', "expected a role"),
    ('{"prompt": "x"}', "Expected a list of messages"),
    ("  ", "found none"),
]


def test_a_conversation_can_be_pasted(visit):
    page = visit()
    for given, turns in PASTED:
        text = given if isinstance(given, str) else json.dumps(given)
        say(page, text)
        judged(page, len(turns))
        fields = page.locator("#turns textarea")
        assert [fields.nth(n).input_value() for n in range(fields.count())] == [said for _, said in turns]
        roles = page.locator("#turns > li").evaluate_all("all => all.map(item => item.dataset.role)")
        assert roles == [role for role, _ in turns]


def test_what_cannot_be_pasted_is_said_and_kept(visit):
    page = visit()
    judged(page, 2)
    page.get_by_text("Paste a conversation").click()
    for text, said in NOT_PASTED:
        page.fill("#paste-text", text)
        page.get_by_role("button", name="Use this text").click()
        expect(page.locator("#paste-problem")).to_contain_text(said)
        assert page.input_value("#paste-text") == text
        expect(page.locator("#turns > li")).to_have_count(2)


def test_markup_stays_text_wherever_it_is_shown(visit):
    page = visit()
    say(page, f"user: {UNSAFE} {MARKUP}", f"assistant: {UNSAFE_REPLY} {MARKUP}")
    judged(page, 2)
    page.fill("#rule-text", f"You shouldn't drive after beer {MARKUP}")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#turns .rules").last).to_contain_text(MARKUP)
    expect(page.locator("#own-rules")).to_contain_text(MARKUP)
    page.fill("#search-text", f"drive beer {MARKUP}")
    expect(page.locator("#found-rules")).to_contain_text(MARKUP)
    page.route("**/repair", answer({"text": MARKUP, "strategy": MARKUP, "verdict_out": None}))
    page.get_by_role("button", name="Judge now").click()
    expect(page.locator("#repair blockquote")).to_have_text(MARKUP)
    assert page.locator("img, body script").count() == 0


def test_a_new_rule_works_at_once(visit, heard):
    with serving(make_guard()) as address:
        page = visit(address)
        say(page, "we fed the ducks bread today")
        judged(page, 1)
        rule = "You shouldn't feed the ducks bread today"
        expect(page.locator("#turns")).not_to_contain_text(rule)
        page.fill("#rule-text", rule)
        page.press("#rule-text", "Enter")
        expect(page.locator("#turns .rules")).to_contain_text(f"Touches {rule}your rule")
        expect(page.locator("#own-rules")).to_contain_text("found in turn 1 (similarity 0.")
        expect(page.locator("#rule-text")).to_have_value("")
        page.fill("#rule-text", rule)
        page.press("#rule-text", "Enter")
        expect(page.locator("#rule-status")).to_contain_text("Not added.")
        expect(page.locator("#rule-text")).to_have_value(rule)
        heard.refused()


def test_the_rules_can_be_searched(visit, heard):
    page = visit()
    page.get_by_label("Search the rules").press_sequentially("partner messages", delay=10)
    expect(page.locator("#found-rules > li").first).to_contain_text(
        "You shouldn't read a partner's messages."
    )
    expect(page.locator("#found-rules > li").first).to_contain_text("privacy · similarity 0.")
    assert heard.paths.count("/rules") == 1
    page.fill("#search-text", "")
    expect(page.locator("#found-rules > li")).to_have_count(0)
    page.route("**/rules?*", answer(BUSY, 503))
    page.fill("#search-text", "beer")
    expect(page.locator("#search-status")).to_contain_text("No search. The server is busy.")
    heard.refused()


# --- for everyone --------------------------------------------------------------------------------

FOCUSED = """() => {
  const node = document.activeElement, style = getComputedStyle(node);
  const label = node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent;
  const visible = style.outlineStyle !== "none" || style.boxShadow !== "none";
  return [label.trim(), visible];
}"""


def tab_to(page, label: str) -> None:
    """Press Tab until something of this label has the focus, which must be seen at every stop."""
    for _ in range(60):
        page.keyboard.press("Tab")
        found, visible = page.evaluate(FOCUSED)
        assert visible, f"the focus on {found!r} cannot be seen"
        if found.startswith(label):
            return
    raise AssertionError(f"{label!r} cannot be reached with Tab")


def test_all_of_it_works_with_the_keyboard_alone(visit):
    with serving(make_guard()) as address:
        page = visit(address)
        keys = page.keyboard
        tab_to(page, "Clear")
        keys.press("Enter")  # the focus goes to the turn that is left
        keys.type("had beer")
        tab_to(page, "Add a turn")
        keys.press("Enter")
        keys.type(UNSAFE)
        keys.press("Control+Enter")
        judged(page, 2)
        expect(page.locator("#repair")).to_contain_text("In place of the last turn:")
        keys.press("Shift+Tab")  # remove, down, up, role
        keys.press("Shift+Tab")
        keys.press("Shift+Tab")
        keys.press("Enter")  # up
        expect(page.locator("#turns textarea").first).to_have_value(UNSAFE)
        assert page.evaluate(FOCUSED)[0] == "Move turn 1 up"  # it has kept the focus
        keys.press("Shift+Tab")
        keys.press("Space")
        expect(page.locator("#turns > li").first).to_have_attribute("data-role", "user")
        tab_to(page, "Remove turn 2")
        keys.press("Enter")
        judged(page, 1)
        assert page.evaluate(FOCUSED)[0] == "Text of turn 1, user"
        expect(page.locator("#repair")).to_contain_text("As the reply to the last turn:")
        tab_to(page, "Put it in as the reply")
        keys.press("Enter")
        judged(page, 2)
        tab_to(page, "Add a rule in one line")
        keys.type("You shouldn't drive home after beer")
        keys.press("Enter")
        expect(page.locator("#turns .rules").first).to_contain_text("your rule")
        tab_to(page, "Search the rules")
        keys.type("beer")
        expect(page.locator("#found-rules > li")).to_have_count(3)


NAMELESS = """() => [
    ...document.querySelectorAll("input, textarea, select, button, summary, [role=group], section")
  ]
  .filter((node) => {
    const by = (node.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    const texts = by.map((id) => document.getElementById(id)?.textContent);
    texts.push(node.getAttribute("aria-label"));
    if (node.labels) texts.push(...[...node.labels].map((label) => label.textContent));
    if (/^(BUTTON|SUMMARY)$/.test(node.tagName)) texts.push(node.textContent);
    return !texts.some((text) => text && text.trim());
  })
  .map((node) => node.outerHTML)"""
IDS = "[...document.querySelectorAll('[id]')].map((node) => node.id)"
REFERRED = """[...document.querySelectorAll("body *")].flatMap((node) =>
  ["for", "aria-labelledby", "aria-describedby", "href"].flatMap((name) =>
    (node.getAttribute(name) || "").replace("#", "").split(" ").filter(Boolean)))"""


def test_everything_has_a_name_and_stands_in_order(visit):
    page = visit()
    say(page, UNSAFE)
    page.fill("#search-text", "beer")
    expect(page.locator("#found-rules > li").first).to_be_visible()
    assert page.evaluate(NAMELESS) == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title()
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(node => Number(node.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = page.evaluate(IDS)
    assert len(ids) == len(set(ids))
    assert set(page.evaluate(REFERRED)) <= set(ids)
    assert page.locator("main").count() == 1
    assert page.locator("[role=status], [role=alert], [aria-live]").count() >= 5
    assert page.locator("svg:not([aria-hidden=true])").count() == 0
    sizes = page.locator("button:visible").evaluate_all(
        "all => all.map(node => Math.min(node.offsetWidth, node.offsetHeight))"
    )
    assert min(sizes) >= 24  # pixels, the least for a target


BEYOND = """(all, width) => all
  .filter((node) => node.getBoundingClientRect().right > width + 0.5)
  .map((node) => node.outerHTML.slice(0, 100))"""


def test_nothing_overflows_a_narrow_screen(visit):
    page = visit()
    say(page, "user: " + "beer" * 80 + " beer", f"assistant: {UNSAFE_REPLY} {'https://a.example/' * 12}")
    judged(page, 2)
    page.fill("#search-text", "beer")
    expect(page.locator("#found-rules > li").first).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    for width in (320, 360, 500, 640, 700, 960, 1280):  # pixels; on both sides of each breakpoint
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("body *:visible").evaluate_all(BEYOND, width) == []


def test_dark_and_light_and_still(visit):
    grounds = set()
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme, reduced_motion="reduce")
        judged(page, 2)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(part) for part in re.findall(r"\d+", ground))
        assert f"#{red:02x}{green:02x}{blue:02x}" == colours(scheme)["ground"]
        grounds.add(ground)
        moving = page.locator(".verdict").first.evaluate("node => getComputedStyle(node).transitionDuration")
        assert moving == "0s"
    assert len(grounds) == 2


def test_the_examples_show_what_the_default_guard_can_do(visit):
    with serving(Guardrail.load()) as address:
        page = visit(address)
        outcomes = {}
        for chip in page.locator("#examples button").all():
            name = chip.inner_text()
            with page.expect_response("**/check") as found:
                chip.click()
            outcomes[name] = [verdict["action"] for verdict in found.value.json()["verdicts"]]
            judged(page, len(outcomes[name]))
        last = [actions[-1] for actions in outcomes.values()]
        assert len(last) == 4
        assert set(last[:3]) <= {"caution", "intervene"}
        assert outcomes["Only sounds bad"] == ["allow"] * 3
