"""Search shows prose before the reference, which has every word somewhere."""


def on_page_markdown(markdown, page, **_):
    """Called by mkdocs for every page, before the search reads what a page is worth."""
    if page.file.src_uri.startswith("api/"):
        page.meta.setdefault("search", {"boost": 0.2})
    return markdown
