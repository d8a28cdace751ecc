"""Reads every page of the built site in a real browser: python -m tests.browser [SITE] [--pictures FOLDER].

At the width of a desk and of a telephone: nothing wider than the window, no block cut off, formulas drawn, pictures
there, no message of error, nothing asked of another host; then that every link leads somewhere, and that the search
finds. Ends with 0, with 1 after a fault. Where no Chromium is installed it says so and ends with 0.
"""

import argparse
import functools
import shutil
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.browser.looks import LOOK, Page, broken, complaints

WIDTHS = (1400, 390)
WORDS = {  # a search, and the address that one of its first results begins with
    "export": "around/",
    "dataset": "recipes/",
    "resume": "recipes/scaling/",
}
SHOWN = ("", "guide/", "recipes/mri/", "api/solve/", "gallery/", "troubleshooting/")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(site: Path):
    """The address at which a folder is served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def listen(tab, base: str, said: list[str]) -> None:
    """Collects what goes wrong while pages load."""
    tab.on("console", lambda message: message.type == "error" and said.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"script: {error}"))
    # what the next page breaks off is no fault
    tab.on("requestfailed", lambda asked: "ABORTED" in asked.failure or said.append(f"not loaded: {asked.url}"))
    tab.on("response", lambda answer: answer.status >= 400 and said.append(f"{answer.status}: {answer.url}"))
    tab.on("request", lambda asked: asked.url.startswith(("data:", "blob:", base)) or said.append(f"asks {asked.url}"))


def read(tab, address: str, said: list[str]) -> tuple[Page, list[str]]:
    """A page as it is measured at the tab's width, and what is wrong with it."""
    said.clear()
    tab.goto(address, wait_until="load")
    # pictures further down are loaded only when they are near
    tab.evaluate(
        "() => Promise.all([...document.images].map((one) => (one.loading = 'eager', one.decode().catch(() => 0))))"
    )
    page = Page(**tab.evaluate(LOOK))
    return page, complaints(page, wide=tab.viewport_size["width"] >= 1000) + said


def search(tab, base: str, word: str) -> list[str]:
    """The addresses of a search's results, from the start of the site; none where none came."""
    from playwright.sync_api import TimeoutError

    tab.goto(base, wait_until="load")
    tab.locator(".md-search__input").fill(word)
    results = tab.locator(".md-search-result__item a.md-search-result__link")
    with suppress(TimeoutError):
        results.first.wait_for(state="attached", timeout=20_000)
    return [link.removeprefix(base) for link in results.evaluate_all("all => all.map((one) => one.href)")]


def pictures(browser, base: str, folder: Path) -> None:
    """Pictures of some pages, light and dark, at both widths, to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for width in WIDTHS:
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            for place in SHOWN:
                tab.goto(base + place, wait_until="load")
                name = place.strip("/").replace("/", "-") or "landing"
                tab.screenshot(path=folder / f"{name}-{width}-{scheme}.png")
            tab.close()


def check(browser, site: Path, base: str, only: str) -> list[str]:
    """Everything that is wrong with the pages below a folder, with the search, and with the links between them."""
    files = {base + path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    addresses = sorted(each for each in files if each.endswith(".html") and not each.endswith("/404.html"))
    addresses = [each for each in addresses if each.startswith(base + only)]
    found, pages = [], {}
    for width in WIDTHS:
        tab, said = browser.new_page(viewport={"width": width, "height": 900}), []
        listen(tab, base, said)
        for address in addresses:
            pages[address], wrong = read(tab, address, said)
            found += [f"{width} px, {address.removeprefix(base)}: {each}" for each in wrong]
        if width == WIDTHS[0] and not only:
            for word, place in WORDS.items():
                results = search(tab, base, word)[:5]
                if not any(result.startswith(place) for result in results):
                    found.append(f"search for {word!r}: expected {place} among {results}")
        tab.close()
    print(f"{len(addresses)} pages at {' and '.join(map(str, WIDTHS))} px")
    return found + [f"leads nowhere: {each}" for each in broken(pages, files, base)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=Path("site"))
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of some pages")
    parser.add_argument("--only", default="", help="read pages whose address begins so, and leave the search out")
    options = parser.parse_args(arguments)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("docs-check: skipped, there is no Chromium here. Try apt-get install chromium.")
        return 0
    if not (options.site / "index.html").is_file():
        print(f"docs-check: {options.site} has no index.html. Try make docs.", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    with served(options.site) as base, sync_playwright() as playwright:
        # without the sandbox, which a container does not allow: only the site's own pages are opened
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if options.pictures:
            pictures(browser, base, options.pictures)
        found = check(browser, options.site, base, options.only)
        browser.close()
    print(*found, sep="\n")
    print(f"docs-check: {len(found)} faults" if found else "docs-check: nothing found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
