"""What a page looks like from inside of the browser: the script that measures it, and what follows from it."""

from dataclasses import dataclass, field
from urllib.parse import unquote, urldefrag, urljoin

# Widths are CSS pixels. What scrolls is not cut, nor is what is hidden on purpose (folded, or in a closed menu).
LOOK = """
() => {
  const root = document.documentElement
  const within = (box) => box.left >= -1.5 && box.right <= root.clientWidth + 1.5
  const name = (one) => one.tagName.toLowerCase() + ': ' + one.textContent.trim().slice(0, 60).replace(/\\s+/g, ' ')
  const shown = (one) => one.checkVisibility() && one.getBoundingClientRect().width > 0
  const frame = (one) => {  // the nearest that scrolls or hides what is too wide for it
    for (let up = one; up && up !== document.body; up = up.parentElement)
      if (up.scrollWidth > up.clientWidth + 1 && up.clientWidth > 0) {
        const way = getComputedStyle(up).overflowX
        if (way !== 'visible') return {up, scrolls: way === 'auto' || way === 'scroll'}
      }
    return null
  }
  const blocks = [...document.querySelectorAll('article :is(pre > code, table, math, img)')].filter(shown)
  const cut = [], scrolled = []
  for (const one of blocks) {
    const outer = frame(one)
    if (outer && !outer.scrolls) cut.push(name(one))
    else if (outer) scrolled.push(name(one))
    else if (!within(one.getBoundingClientRect())) cut.push(name(one))
  }
  const maths = [...document.querySelectorAll('article math')].filter(shown)
  return {
    overflow: Math.max(root.scrollWidth, document.body.scrollWidth) - root.clientWidth,
    cut, scrolled,
    undrawn: [...document.querySelectorAll('article .arithmatex, article merror')].map(name)
      .concat(maths.filter((one) => one.getBoundingClientRect().height < 3).map(name)),
    unseen: [...document.querySelectorAll('article img')].filter((one) => one.complete && !one.naturalWidth)
      .map((one) => one.src),
    links: [...document.querySelectorAll('a[href]')].map((one) => one.href),
    ids: [...document.querySelectorAll('[id], a[name]')].map((one) => one.id || one.name),
  }
}
"""


@dataclass
class Page:
    """One page as it was measured.

    Attributes:
        overflow: by how many pixels the page is wider than the window.
        cut: blocks whose right end nobody can see.
        scrolled: blocks that have to be scrolled sideways to be read.
        undrawn: formulas that were not drawn.
        unseen: pictures that did not come.
        links: where it leads, as absolute addresses.
        ids: places of it that a link may lead to.
    """

    overflow: int = 0
    cut: list[str] = field(default_factory=list)
    scrolled: list[str] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def complaints(page: Page, wide: bool) -> list[str]:
    """What is wrong with a page by itself.

    Args:
        page: as it was measured.
        wide: whether the window is wide enough to show code and tables without scrolling.
    """
    found = [f"wider than the window by {page.overflow} px"] if page.overflow > 0 else []
    found += [f"cut off: {block}" for block in page.cut]
    found += [f"has to be scrolled at this width: {block}" for block in page.scrolled if wide]
    found += [f"formula that is not drawn: {formula}" for formula in page.undrawn]
    return found + [f"picture that did not come: {picture}" for picture in page.unseen]


def broken(pages: dict[str, Page], files: set[str], base: str) -> list[str]:
    """Links inside of the site that lead nowhere, each with the page that has it.

    Args:
        pages: by their addresses.
        files: addresses of all that the site has, pages included.
        base: where the site begins; links elsewhere are not followed.
    """
    found = []
    for address, page in pages.items():
        for link in sorted(set(page.links)):
            target, anchor = urldefrag(urljoin(address, link))
            if not target.startswith(base):
                continue
            target = target + "index.html" if target.endswith("/") else target
            if unquote(target) not in files:
                found.append(f"{address}: {link}")
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                found.append(f"{address}: {link} (no such place on that page)")
    return found
