"""Checks that the texts of a page that is open in a browser have the contrast that WCAG 2 asks for at level AA."""

from checks import check

# Texts with their contrast to what lies behind them, where it is below 4.5, or 3 for large letters. What can't be used needs
# none.
LOW = """() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
  const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const node = walker.currentNode.parentElement;
    if (!text || !node.getClientRects().length || node.closest("script, style, title, :disabled, option")) continue;
    const above = [];
    for (let at = node; at; at = at.parentElement) above.unshift(at);
    let paper = [255, 255, 255];
    let opacity = 1;
    for (const at of above) {
      const style = getComputedStyle(at);
      paper = over(parse(style.backgroundColor), paper);
      opacity *= Number(style.opacity);
    }
    const style = getComputedStyle(node);
    const colour = parse(node.closest("svg") ? style.fill : style.color);
    const ink = over([...colour.slice(0, 3), colour[3] * opacity], paper);
    const [a, b] = [light(ink), light(paper)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (isLarge ? 3 : 4.5)) low.push(`${text.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return low;
}"""


def readable(page, name):
    low = page.evaluate(LOW)
    check(not low, f"{name}: too little contrast of {low[:5]}")


def readable_at_most(page, name):
    """The texts of the tokens can be read on the strongest colour, too."""
    page.evaluate("document.querySelectorAll('.token').forEach((token) => token.style.setProperty('--share', '1'))")
    readable(page, f"{name}, strongest colour")
