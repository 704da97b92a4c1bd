"""A hook of mkdocs. Pages link to files of the repository, which works for readers of the sources.
The hook adds these files as pages, so that all links work on the site, too. It fails the build if a
page loads a script, a style sheet or an image from another host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
# Resources that a browser loads automatically. The theme loads Mermaid from a CDN if a page has a
# Mermaid diagram.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon)\b[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|class=["']?mermaid\b"""
)


def _target(file: Path, link: str) -> Path | None:
    """Return the target of a link in `file` if it is a file of the repository outside docs/."""
    if re.match(r"[a-z]+:", link):
        return None
    found = (file.parent / link).resolve()
    inside = found.is_relative_to(REPOSITORY) and not found.is_relative_to(DOCS)
    return found if inside and found.is_file() else None


def _place(file: Path) -> str:
    """Return the path on the site of a file of the repository."""
    path = file.relative_to(REPOSITORY).as_posix()
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def _relative(link: Path, page: str) -> str:
    return "../" * page.count("/") + _place(link)


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to, recursively."""
    found = {Path(each.abs_src_path) for each in files.documentation_pages() if each.abs_src_path}
    waiting = [*found]
    while waiting:
        file = waiting.pop()
        if file.suffix != ".md":
            continue
        for link in LINK.findall(file.read_text()):
            target = _target(file, link)
            if target is not None and target not in found:
                found.add(target)
                waiting.append(target)
                text = target.read_text()
                if target.suffix != ".md":
                    name = target.relative_to(REPOSITORY)
                    text = f"# {name}\n\n```{target.suffix[1:]}\n{text}```\n"
                files.append(File.generated(config, _place(target), content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Rewrite links to the pages of the site."""
    uri = page.file.src_uri
    file = DOCS / uri
    if uri.startswith("repository/"):
        file = REPOSITORY / uri.removeprefix("repository/")

    def moved(match: re.Match[str]) -> str:
        target = _target(file, match[1])
        if target is not None:
            return _relative(target, uri)
        if file.is_relative_to(DOCS) or re.match(r"[a-z]+:", match[1]):
            return match[1]
        # A link from a file outside docs/ to a page in docs/.
        found = (file.parent / match[1]).resolve()
        if not found.is_relative_to(DOCS):
            return match[1]
        return "../" * uri.count("/") + found.relative_to(DOCS).as_posix()

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, config: Any) -> str:
    """Fail the build if the page loads a resource from another host."""
    found = LOADED.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads from another host: {found[0]}")
    return output
