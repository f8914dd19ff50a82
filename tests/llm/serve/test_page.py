"""The chat page in a headless Chromium (Debian's packages chromium and chromium-driver)."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from support.server import serving
from support.small_llama import write_speaking

PAGE = Path(__file__).resolve().parents[3] / "muladd/llm/serve/page.html"


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver, which .ci/run installs where it can")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--window-size=900,700"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options, selenium.ChromeService(driver))
    yield found
    found.quit()


def until(browser, what, seconds=60):
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, seconds, 0.02).until(lambda _: what())


def test_a_conversation_on_the_page(browser, tmp_path):
    # no answer may end by itself before a slow browser clicks
    model = write_speaking(tmp_path / "nonsense.gguf", context=32768, endless=True)
    with serving(model, "--slots", "1", "--api-key", "secret", "--context", "32768") as server:
        browser.get(server.url)

        def at(name):
            return browser.find_element("id", name)

        def lines(kind):
            return [e.text for e in browser.find_elements("css selector", f".message.{kind}")]

        def idle():
            return at("send").text == "Send"

        def say(text):
            at("text").send_keys(text, "\n")

        assert browser.title == "nonsense" and at("model").text == "nonsense"
        browser.execute_script("document.querySelector('details').open = true")
        for name, value in (("most", "40"), ("temperature", "0"), ("key", "wrong")):
            at(name).clear()
            at(name).send_keys(value)
        say("hello")
        until(browser, lambda: lines("error") and idle())
        assert "API key" in lines("error")[0] and not lines("assistant")
        at("key").clear()
        at("key").send_keys("secret")
        say("hello <b>you</b>")
        until(browser, lambda: lines("assistant") and idle())
        assert lines("user") == ["hello", "hello <b>you</b>"] and lines("assistant")[0]
        assert re.fullmatch(r"[\d.]+ tokens/s", at("speed").text)
        seen = server.metric("prompt_tokens")
        say("and again")  # the conversation so far goes along
        until(browser, lambda: len(lines("assistant")) == 2 and idle())
        assert server.metric("prompt_tokens") - seen > len("hello <b>you</b> and again")

        # an answer comes piece by piece, and is stopped by the same button
        at("most").clear()
        at("most").send_keys("30000")
        say("tell me all")
        first = until(browser, lambda: len(lines("assistant")) == 3 and lines("assistant")[2])
        until(browser, lambda: len(lines("assistant")[2]) > len(first))
        assert at("send").text == "Stop"
        at("send").click()
        until(browser, idle)
        assert server.becomes(running=0, seconds=5) and server.metric("cancelled") == 1

        at("clear").click()
        assert not lines("user") and not lines("assistant") and at("speed").text == ""
        wrong = [e for e in browser.get_log("browser") if "401" not in e["message"]
                 and "favicon" not in e["message"]]  # fmt: skip
        assert not wrong


def test_the_page_needs_nothing_from_elsewhere():
    text = PAGE.read_text()
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert text.count("\n") < 250
