"""Reads a page as a browser does, and checks it."""

import html.parser
import re

WORDS = ("aria-label", "alt")
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Collects the elements of a page; fails if an element is not closed, or the wrong one is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def check(path):
    """Checks what holds for every page, and returns it."""
    text = path.read_text()
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "base") and not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href", "action"):
            target = attrs.get(name, "#runs")
            assert target.startswith(("data:image/png;base64,", "data:,", "#")), target
            assert not target.startswith("#") or target[1:] in ids, target
    values = (value or "" for _, attrs in page.elements for name, value in attrs.items() if name not in WORDS)
    looks = " ".join([*values, text[text.index("<style>") : text.index("</style>")]])
    for target in re.findall(r"url\(([^)]*)\)", looks):
        assert target.startswith("#") and target[1:] in ids, target
    assert "@import" not in text
    assert not re.search(r"#0\d0a0a|#010101|#020202", looks), "a colour that is not the page's"
    assert all(attrs.get("aria-label") for tag, attrs in page.elements if tag == "svg")
    return page
