"""Opens Weft's pages in a headless Chromium: they render in light and dark and on a phone's width without scrolling
sideways, nothing stands in the console, and a point or token tells its numbers where the pointer rests on it.
Reads a run's TensorBoard events with TensorBoard. Needs `pip install playwright tensorboard` and Debian's chromium.

    python scripts/pages.py WEFT FOLDER

WEFT is the program; FOLDER is made, with a short run and the pages of it, and keeps screenshots.
"""

import json
import pathlib
import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from checks import check, report
from contrast import readable, readable_at_most

RECIPE = """
[data]
train = "rows.jsonl"
held_out = "rows.jsonl"
held_out_rows = 2
on_bad_row = "skip"
[train]
output = "run"
max_steps = 20
micro_batch_size = 3
lr = 1e-3
eval_every = 5
[sampler]
gen_length = 32
diffusion_steps = 8
[eval]
samples = 2
"""
STUDY = """
[data]
train = "rows.jsonl"
held_out = "rows.jsonl"
held_out_rows = 2
on_bad_row = "skip"
[train]
output = "study"
max_steps = 4
micro_batch_size = 2
[reproduce]
seeds = 2
evaluations = 2
timing_rounds = 0
arms = ["sft-masked", "sft-answer", "weft-masked", "weft-answer"]
[[reproduce.settings]]
name = "a-setting-of-many-letters"
"""
# A name that is longer than a phone's line.
LONG = "a-run-with-a-name-that-is-longer-than-the-line-of-a-phone"
SCREENS = [("light", 1280), ("dark", 1280), ("light", 1100), ("dark", 1100), ("light", 390), ("dark", 390)]


def run(weft, *arguments, cwd):
    done = subprocess.run([weft, *arguments], cwd=cwd, capture_output=True, text=True)
    check(done.returncode == 0, f"weft {' '.join(arguments)}: {done.stderr}")


def make_pages(weft, folder):
    """A short run with a hostile row, whose texts must stay texts on every page."""
    hostile = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\">"
    answer = hostile + "\nand & two  spaces, \U0001f600 and \u202etxt"
    rows = [{"messages": [{"role": "user", "content": hostile}, {"role": "assistant", "content": answer}]}] * 64
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "<b>"}\n')
    (folder / "answer.txt").write_text(answer)
    (folder / "recipe.toml").write_text(RECIPE)
    run(weft, "train", "recipe.toml", cwd=folder)
    run(weft, "train", "recipe.toml", "--set", "train.lr=1e-4", "--set", "train.output=slow", cwd=folder)
    run(weft, "train", "recipe.toml", "--set", "train.lr=5e-4", "--set", f"train.output={LONG}", cwd=folder)
    run(weft, "compare", "run", "slow", LONG, cwd=folder)
    # Six runs, of which four have other held-out rows, and seven settings that differ.
    for name in ["rank-2", "rank-4", "rank-16", "rank-32"]:
        changes = [f"train.output={name}", f"model.lora_rank={name[5:]}", "data.held_out_rows=1", "train.warmup_steps=2",
                   "train.max_grad_norm=0.5", "objective.kind=sft", "sampler.gen_length=16", "sampler.diffusion_steps=16"]
        run(weft, "train", "recipe.toml", *(part for change in changes for part in ["--set", change]), cwd=folder)
    run(weft, "compare", "run", "slow", "rank-2", "rank-4", "rank-16", "rank-32", "--out", "six.html", cwd=folder)
    (folder / "study.toml").write_text(STUDY)
    run(weft, "reproduce", "study.toml", cwd=folder)
    run(weft, "inspect", "--model", "tiny-base", "--text", "answer.txt", "--prompt", hostile, cwd=folder)


# Texts of a chart that lie on each other, and those that leave it.
LABELS = """svg => {
  const all = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const paper = svg.getBoundingClientRect();
  const pairs = all.flatMap(([one, a], i) => all.slice(i + 1).filter(([, b]) => over(a, b)).map(([other]) => `${one} on ${other}`));
  const out = all.filter(([, a]) => a.left < paper.left - 0.5 || a.right > paper.right + 0.5 || a.top < paper.top - 0.5 || a.bottom > paper.bottom + 0.5);
  return pairs.concat(out.map(([text]) => `${text} outside`));
}"""


def fits(page, name):
    """The page doesn't scroll sideways; its tables are whole, or scroll in a box of their own; labels stand apart."""
    wide = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    check(wide[0] <= wide[1], f"{name}: {wide[0]} pixels on a screen of {wide[1]}")
    cells = page.locator(".stacked td").evaluate_all("all => all.filter(cell => cell.getBoundingClientRect().right > innerWidth).map(cell => cell.textContent)")
    check(not cells, f"{name}: {cells} beyond the screen")
    wrong = [label for svg in page.locator("svg").all() for label in svg.evaluate(LABELS)]
    check(not wrong, f"{name}: labels {wrong}")
    broken = page.evaluate(BROKEN)
    check(not broken, f"{name}: {broken} broken within a word")


# Names of tables that a line's end breaks within a word: a range over the letters between two places to break has two lines.
BROKEN = """() => innerWidth < 704 ? [] : [...document.querySelectorAll("th, td:first-child")].flatMap((cell) => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  const broken = [];
  while (walker.nextNode()) {
    for (const word of walker.currentNode.textContent.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, word.index);
      range.setEnd(walker.currentNode, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1) broken.push(word[0]);
    }
  }
  return broken;
})"""


def charts(browser, folder):
    """The charts of a comparison, shown as on a page that includes them as images."""
    paths = sorted(folder.glob("*.svg"))
    check(len(paths) == 2, f"a chart of the losses and one of their differences, not {paths}")
    images = "".join(f'<img src="{path.name}" style="max-width:100%">' for path in paths)
    (folder / "charts.html").write_text(f'<!doctype html><meta name="viewport" content="width=device-width">{images}')
    for scheme, width in SCREENS:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto((folder / "charts.html").resolve().as_uri())
        fits(page, f"charts ({scheme}, {width} pixels)")
        page.screenshot(path=folder / f"charts-{scheme}-{width}.png", full_page=True)
        for path in paths:
            page.goto(path.resolve().as_uri())
            wrong = page.locator("svg").first.evaluate(LABELS)
            check(not wrong, f"{path.name}: labels {wrong}")
        page.close()


def look(browser, page_path, hovered, nth=3):
    for scheme, width in SCREENS:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        told = []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(page_path.resolve().as_uri())
        name = f"{page_path.stem} ({scheme}, {width} pixels)"
        check(page.title() != "broken", f"{name}: text from data ran as a script")
        fits(page, name)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        check((paper == "rgb(255, 255, 255)") == (scheme == "light"), f"{name}: paper is {paper}")
        check(page.locator("#tip").is_hidden(), f"{name}: something is told before the pointer rests on anything")
        target = page.locator(hovered).nth(nth)
        target.scroll_into_view_if_needed()
        target.hover()
        tip = page.locator("#tip").inner_text()
        check(page.locator("#tip").is_visible() and any(c.isdigit() for c in tip), f"{name}: hover tells {tip!r}")
        page.screenshot(path=page_path.with_name(f"{page_path.stem}-{scheme}-{width}.png"), full_page=True)
        readable(page, name)
        if hovered == ".token":
            readable_at_most(page, name)
        check(not told, f"{name}: the console has {told}")
        page.close()


def scrolls(browser, page_path):
    """A table that is wider than the page has a box with a shadow, which the arrow keys scroll; reasons are told once."""
    # The narrowest page on which the cells of a row stand side by side (44rem in page.css).
    page = browser.new_page(viewport={"width": 705, "height": 900})
    page.goto(page_path.resolve().as_uri())
    check(page.locator("p.warning", has_text="can't be compared").count() == 1, "one line lists the runs")
    widest = page.locator(".table").evaluate_all("all => all.map(box => box.scrollWidth - box.clientWidth)")
    check(max(widest) > 0, f"no table is wider than its box: {widest}")
    box = page.locator(".table").nth(widest.index(max(widest)))
    check("gradient" in box.evaluate("box => getComputedStyle(box).backgroundImage"), "it has a shadow")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    check(box.evaluate("box => box.scrollLeft") > 0, "the arrow keys scroll it")
    page.screenshot(path=page_path.with_name("six-scrolled.png"), full_page=True)
    page.close()


def slider(browser, page_path):
    page = browser.new_page()
    page.goto(page_path.resolve().as_uri())
    token = page.locator(".token").nth(3)
    before = token.get_attribute("data-tip")
    page.locator("#t").fill("0.9")
    after = token.get_attribute("data-tip")
    check("t = 0.50" in before and "t = 0.90" in after, f"the slider changes {before!r} to {after!r}")
    r = float(token.get_attribute("data-r"))
    rate = 100 * (1 - 0.1**r)
    check(f"masked at t = 0.90: {rate:.1f} %" in after, f"the rate at r {r} and t 0.9 is {rate:.1f} %, not {after!r}")


def colours(browser, page_path):
    page = browser.new_page()
    page.goto(page_path.resolve().as_uri())
    tokens = page.locator(".token")
    shares = lambda: [float(token.split(",")[-1].strip(" )")) if token.startswith("rgba") else 1.0
                      for token in tokens.evaluate_all("all => all.map(token => getComputedStyle(token).backgroundColor)")]
    check(min(shares()) > 0, "every token has an entropy above 0")
    page.locator("#colour").select_option("lowest")
    check(min(shares()) == 0 and max(shares()) == 0.75, "the scale goes from the lowest entropy to the highest")
    page.locator("#colour").select_option("rate")
    page.locator("#t").fill("0.1")
    few = shares()
    page.locator("#t").fill("0.9")
    check(all(a < b for a, b in zip(few, shares())), "a later time masks more")
    check("masked" in page.locator("#high").inner_text(), "the scale is of rates")
    parts = page.locator("[data-part]")
    check(parts.count() == 4 + 3 and "\U0001f600" in parts.nth(2).get_attribute("data-tip"), "parts of a character show it whole")
    check("\u202e" not in page.content() and "u{202e}" in page.content(), "a mark of direction is escaped")


def points(browser, page_path):
    """A finger near a point of a chart is told its numbers; labels can be read on a phone."""
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(page_path.resolve().as_uri())
    point = page.locator("svg polyline ~ circle").nth(2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    check(page.locator("#tip").is_visible(), "a point near the pointer tells its numbers")
    heights = page.locator("svg text:not([transform])").evaluate_all("all => all.map(text => text.getBoundingClientRect().height)")
    check(min(heights) >= 11, f"letters of {min(heights):.1f} pixels on a phone")


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {"loss": "curves/loss", "nll": "curves/nll", "grad_norm": "curves/grad_norm",
             "held_out_nll_bound": "curves/held_out_nll_bound", "mean_entropy": "entropy/mean"}
    median = [(line["step"], line["entropy_quantiles"][2]) for line in lines if line.get("entropy_quantiles")]
    found = [(event.step, event.value) for event in accumulator.Scalars("entropy/median")]
    check([step for step, _ in found] == [step for step, _ in median], "TensorBoard reads the median of every step")
    for tag, name in names.items():
        expected = [(line["step"], line[tag]) for line in lines if line.get(tag) is not None]
        found = [(event.step, event.value) for event in accumulator.Scalars(name)]
        close = len(found) == len(expected) and all(
            a == b and abs(x - y) <= 1e-6 * abs(y) for (a, x), (b, y) in zip(found, expected))
        check(expected and close, f"TensorBoard reads {found} of {tag}, not {expected}")


def main():
    weft, folder = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_pages(weft, folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        look(browser, folder / "run/report.html", "svg circle")
        look(browser, folder / "entropy.html", ".token")
        slider(browser, folder / "entropy.html")
        look(browser, folder / "compare.html", "svg circle")
        look(browser, folder / "six.html", "svg circle", 0)
        scrolls(browser, folder / "six.html")
        colours(browser, folder / "entropy.html")
        points(browser, folder / "run/report.html")
        points(browser, folder / "compare.html")
        charts(browser, folder / "study")
        browser.close()
    events(folder / "run")
    report()


if __name__ == "__main__":
    main()
