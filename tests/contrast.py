"""Contrast of the texts of a page in a browser."""

from __future__ import annotations

from typing import Any

_SCRIPT = """
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4);
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
const seen = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement, style = getComputedStyle(e);
  if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
  if (e.closest('button:disabled, script, style') || style.backgroundColor.startsWith('color')) continue;
  const drawn = e instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [light(parse(drawn)), light(behind(e))].sort((p, q) => q - p);
  const ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) seen.push([e.textContent.slice(0, 40), String(e.className.baseVal ?? e.className), ratio]);
}
return seen;
"""


def low_contrasts(browser: Any) -> list[list[Any]]:
    """Return each visible text below the contrast of WCAG AA, 4.5, with its classes and contrast."""
    return list(browser.execute_script(_SCRIPT))
