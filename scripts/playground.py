"""Drives the playground of `weft serve` in a headless Chromium: an answer is denoised live by a base and an adapter side by
side, its steps are replayed, a long one is stopped, hostile text stays text, nothing stands in the console, and it is
readable on a phone and in the dark. Needs `pip install playwright` and Debian's chromium.

    python scripts/playground.py WEFT FOLDER

WEFT is the program; FOLDER is made, with a short run for its adapter, and keeps screenshots.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

from checks import check, report
from contrast import readable, readable_at_most

RECIPE = """
[data]
train = "rows.jsonl"
[train]
output = "run"
max_steps = 4
micro_batch_size = 2
lr = 1e-2
"""


def wait(page, expression, seconds=120):
    """Waits until an expression is true. The page's policy forbids Playwright's own waiting, which evaluates text."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        check(time.monotonic() < end, f"in {seconds} s: {expression}")
        page.wait_for_timeout(20)


def make_adapter(weft, folder):
    rows = [{"prompt": f"What is {i} + 5?", "response": f"It is {i + 5}."} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.toml").write_text(RECIPE)
    done = subprocess.run([weft, "train", "recipe.toml"], cwd=folder, capture_output=True, text=True)
    check(done.returncode == 0, done.stderr)


def start(weft, folder, *options):
    server = subprocess.Popen([weft, "serve", "--model", "tiny-base", "--adapter", "run/adapter", "--port", "0", "--quiet",
                               "--max-length", "8192", *options], cwd=folder, stdout=subprocess.PIPE, text=True)
    return server, server.stdout.readline().rsplit(" ", 1)[1].strip()


def open_page(browser, address, scheme="light", width=1280):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.told = []
    page.on("console", lambda message: page.told.append(message.text))
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("request", lambda request: check(request.url.startswith((address, "data:")), f"{request.url} is another place"))
    page.goto(address)
    wait(page, "document.getElementById('model-a').options.length > 0")
    check(page.locator("#model-a").input_value() == "run", "the adapter is chosen, not the base")
    return page


def denoise(page, tokens=32, beside=True):
    page.locator("details").evaluate("details => { details.open = true }")
    page.locator("#max_tokens").fill(str(tokens))
    page.locator("#diffusion_steps").fill(str(tokens))
    page.locator("#block_length").fill("8")
    if beside:
        page.locator("#model-b").select_option("tiny-base")
    page.locator("#go").click()


def wait_until_done(page, panes):
    wait(page, f"document.querySelectorAll('.text[data-done]').length === {panes}")


def look(browser, address, folder):
    for scheme, width in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]:
        page = open_page(browser, address, scheme, width)
        name = f"the playground ({scheme}, {width} pixels)"
        denoise(page)
        wait(page, "Number(document.querySelector('.step').max) >= 8")
        page.screenshot(path=folder / f"playground-{scheme}-{width}-live.png", full_page=True)
        readable(page, f"{name}, live")
        wait_until_done(page, 2)
        page.locator(".token").nth(2).click()
        check("confidence" in page.locator(".facts").first.inner_text(), f"{name}: a token tells its confidence")
        check("entropy" in page.locator(".token").nth(2).get_attribute("title"), f"{name}: and its entropy")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        check(overflow <= 0, f"{name}: {overflow} pixels wider than the screen")
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        check((paper == "rgb(255, 255, 255)") == (scheme == "light"), f"{name}: paper is {paper}")
        page.screenshot(path=folder / f"playground-{scheme}-{width}.png", full_page=True)
        readable(page, name)
        page.locator(".step").first.fill("0")
        readable_at_most(page, name)
        check(not page.told, f"{name}: the console has {page.told}")
        page.close()


def replay(page):
    slider = page.locator(".step").first
    steps = int(slider.get_attribute("max"))
    check(steps > 4, f"there are {steps} steps")
    masked = lambda: page.locator(".pane").first.locator(".token.masked").count()
    counts = []
    for step in range(steps + 1):
        slider.fill(str(step))
        counts.append(masked())
    check(counts[0] == 32 and counts[-1] == 0 and counts == sorted(counts, reverse=True), f"masks by step: {counts}")
    slider.fill("0")
    title = page.locator(".token").first.get_attribute("title")
    check("masked, entropy" in title, f"a masked token tells its entropy: {title}")
    shares = page.locator(".pane").first.locator(".token").evaluate_all("all => all.map(token => getComputedStyle(token).backgroundColor)")
    check(len(set(shares)) > 1, "colours differ")
    page.locator(".play").first.click()
    wait(page, "document.querySelector('.step').value === document.querySelector('.step').max")
    check(masked() == 0, "a replay ends with the answer")
    page.locator("#colour").select_option("entropy")
    check("nats" in page.locator("#high").inner_text(), "the scale is of entropies")


def keyboard(page):
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")
    wait_until_done(page, 2)
    page.locator(".text").first.focus()
    for key in ["ArrowRight", "ArrowRight", "End"]:
        page.keyboard.press(key)
    check("position 32" in page.locator(".facts").first.inner_text(), "the arrow keys move from token to token")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowLeft")
    check(page.locator(".step").first.input_value() != page.locator(".step").first.get_attribute("max"), "and the slider's steps")


def stop(page):
    denoise(page, 1000, beside=False)
    wait(page, "Number(document.querySelector('.step')?.max) >= 3")
    page.locator("#stop").click()
    wait(page, "document.querySelector('.status').textContent.startsWith('stopped after step')")
    check(page.locator("#go").is_enabled() and page.locator("#stop").is_disabled(), "one can ask again")
    # The server has given it up: the next answer doesn't wait.
    denoise(page, 16, beside=False)
    wait_until_done(page, 1)


def hostile(page):
    page.locator("#prompt").fill("<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">\u202etxt")
    denoise(page, 16, beside=False)
    wait_until_done(page, 1)
    check(page.title() == "Weft playground", "text stays text")
    page.locator("#max_tokens").fill("9999")
    page.locator("#go").click()
    wait(page, "document.getElementById('problem').textContent.includes('max_tokens 9999')")
    # A refusal's status is a line of the browser's own.
    page.told[:] = [line for line in page.told if "the server responded with a status of 400" not in line]


def keys(browser, weft, folder):
    server, address = start(weft, folder, "--api-key", "secret")
    try:
        page = browser.new_page()
        page.goto(address)
        wait(page, "document.getElementById('problem').textContent.includes('API key is missing')")
        page.locator("#key").fill("secret")
        page.locator("#key").blur()
        wait(page, "document.getElementById('model-a').options.length === 2")
        denoise(page, 16)
        wait_until_done(page, 2)
        page.close()
    finally:
        server.terminate()


def main():
    weft, folder = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_adapter(weft, folder)
    server, address = start(weft, folder)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            look(browser, address, folder)
            page = open_page(browser, address)
            denoise(page)
            wait_until_done(page, 2)
            replay(page)
            keyboard(page)
            stop(page)
            hostile(page)
            check(not page.told, f"the console has {page.told}")
            keys(browser, weft, folder)
            browser.close()
    finally:
        server.terminate()
    check(server.wait(60) == 0, "SIGTERM ends the server in peace")
    report()


if __name__ == "__main__":
    main()
