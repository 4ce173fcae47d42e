"""A strict reader of our own pages: what browsers forgive, it does not."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br", "hr", "link"}
#: Attributes from which a browser loads something by itself.
LOADING = {"src", "srcset", "poster", "data", "background", "action", "formaction", "ping"}


class Page(HTMLParser):
    """Elements as (tag, attributes); ``text`` is all that is shown or read aloud."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.problems: list[str] = []
        self.text = ""
        self.styles = ""
        self.feed(html)
        self.close()
        if self.open:
            self.problems.append(f"never closed: {self.open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(set(names)) != len(names):
            self.problems.append(f"<{tag}> has an attribute twice: {names}")
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def loaded(self) -> list[str]:
        """Everything that a browser would ask somebody for."""
        found = [
            value or ""
            for tag, attributes in self.elements
            for name, value in attributes.items()
            if name in LOADING
            or (name in ("href", "xlink:href") and tag in ("link", "image", "use", "base"))
            or (name == "style" and "url(" in (value or ""))
        ]
        found += [tag for tag, _ in self.elements if tag in ("script", "iframe", "object", "embed")]
        found += [word for word in ("url(", "@import") if word in self.styles]
        return [value for value in found if not value.startswith("data:")]

    def dangling(self) -> list[str]:
        """Links within the page that lead nowhere, and descriptions that name nothing."""
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        wanted = [
            (attributes.get("href") or "").removeprefix("#")
            for attributes in self.all("a")
            if (attributes.get("href") or "").startswith("#")
        ]
        wanted += [a["aria-labelledby"] or "" for _, a in self.elements if "aria-labelledby" in a]
        twice = [one or "" for one in set(ids) if ids.count(one) > 1]
        return [one for one in wanted if one not in ids] + twice
