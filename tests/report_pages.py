"""What every page of ours must be, asked of a real browser: readable, reachable by keyboard, printable."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const parse = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("style, title, desc, .visually-hidden")) continue;
    const style = getComputedStyle(element);
    const ink = light(parse(element instanceof SVGElement ? style.fill : style.color)), paper = light(behind(element));
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    found.push([ratio, large ? 3 : 4.5, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}
"""
FOCUSABLE = """
() => {
  const all = [...document.querySelectorAll("a[href], summary, button, input, select, textarea, [tabindex='0']")];
  all.forEach((e, i) => { e.dataset.order = i; });
  return all.filter(e => e.checkVisibility()).map(e => e.dataset.order);
}
"""


def check_structure(page: Page) -> None:
    """Language, title, one first heading, no level left out, scopes of headers, names of figures and regions."""
    assert page.get_attribute("html", "lang") == "en"
    assert page.title()
    levels = [
        int(level) for level in page.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(e => e.tagName[1])")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), levels
    for landmark in ("header", "nav", "main", "footer"):
        assert page.locator(landmark).count() == 1
    assert page.locator("table").count() > 0
    assert page.locator("table th:not([scope])").count() == 0
    assert page.locator("table:not(:has(thead th))").count() == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    named = page.eval_on_selector_all(
        "[aria-labelledby], [aria-describedby]",
        "all => all.flatMap(e => [e.getAttribute('aria-labelledby'), e.getAttribute('aria-describedby')])",
    )
    assert {name for names in named if names for name in names.split()} <= set(ids)
    assert page.locator("svg[role=img]:not(:has(title))").count() == 0
    assert page.locator("nav a").count() > 2
    targets = page.eval_on_selector_all("a[href^='#']", "all => all.map(e => e.getAttribute('href').slice(1))")
    assert set(targets) <= set(ids)


def check_alone(page: Page) -> None:
    """The file has no scripts, and nothing in it names anything to be fetched."""
    assert page.locator("script, link, iframe, object, embed, img[src], base, form").count() == 0
    policy = page.get_attribute("meta[http-equiv='Content-Security-Policy']", "content") or ""
    assert policy.startswith("default-src 'none'")


def check_contrast(page: Page) -> None:
    """WCAG AA: 4.5 to 1, and 3 to 1 for large text."""
    found: list[Any] = page.evaluate(CONTRAST)
    assert len(found) > 50
    assert not [entry for entry in found if entry[0] < entry[1]]


def check_width(page: Page) -> None:
    """The page does not scroll sideways; wide tables do so by themselves."""
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def check_keyboard(page: Page) -> None:
    """Tab reaches everything that can be used, in the order of the page, and shows where it is."""
    wanted: list[str] = page.evaluate(FOCUSABLE)
    reached: list[str] = []
    for _ in wanted:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.order"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert reached == wanted


def check_print(page: Page) -> None:
    """On paper everything that was folded is there, on white."""
    page.emulate_media(media="print")
    hidden = (
        """all => all.filter(e => !e.closest('.data') && !e.checkVisibility()).map(e => e.textContent.slice(0, 60))"""
    )
    assert page.eval_on_selector_all("details :is(p, pre, td, th, h4, li)", hidden) == []
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(page.pdf(format="A4")) > 10_000
