"""What is made of a page's measures; the measures themselves are the browser's, see `make docs-check`."""

import pytest

from tests.browser.looks import Page, broken, complaints

BASE = "http://here/"


def site(**links):
    """A site of two pages, of which the first has the links that are given."""
    pages = {BASE + "index.html": Page(links=list(links.values())), BASE + "a/index.html": Page(ids=["top", "größe"])}
    return broken(pages, {*pages, BASE + "data.csv"}, BASE)


@pytest.mark.parametrize(
    "link",
    [
        "a/",
        "a/index.html",
        "a/#top",
        "a/#gr%C3%B6%C3%9Fe",
        "data.csv",
        "data.csv#row",
        "https://elsewhere/x",
        "mailto:a",
    ],
)
def test_links_that_lead_somewhere(link):
    assert site(link=link) == []


@pytest.mark.parametrize("link", ["b/", "a", "a/#bottom", "more.csv", "http://here/a/b/"])
def test_links_that_lead_nowhere(link):
    (found,) = site(link=link)
    assert found.startswith(BASE + "index.html: " + link)


def test_a_good_page_has_no_complaints():
    assert complaints(Page(scrolled=["code: a long line"]), wide=False) == []


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (Page(overflow=7), "wider than the window by 7 px"),
        (Page(cut=["table: a"]), "cut off: table: a"),
        (Page(scrolled=["code: b"]), "has to be scrolled"),
        (Page(undrawn=["math: x"]), "not drawn"),
        (Page(unseen=["p.png"]), "did not come: p.png"),
    ],
)
def test_each_fault_is_told(page, words):
    (complaint,) = complaints(page, wide=True)
    assert words in complaint
