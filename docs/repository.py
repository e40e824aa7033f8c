"""MkDocs hook: the repository's files beside the pages, so that links work here as they do in the repository.

README.md is the first page; whatever else a page links to outside docs/ goes below repository/ of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "results/README.md")  # further ones are files
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and the files that pages link to."""
    for path in PAGES:
        files.append(_file(path, config))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            path = _repository_path(page, link)
            if (
                not _is_in_docs(path)
                and (ROOT / path).is_file()
                and files.get_file_from_path(_site_path(path)) is None
            ):
                files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between the repository's places into links between the site's; wrong ones stay, and are told."""

    def turned(link: re.Match[str]) -> str:
        path = _repository_path(page.file, link[1])
        if not (ROOT / path).exists():
            return link[1]
        return posixpath.relpath(_site_path(path), posixpath.dirname(page.file.src_uri))

    return LINK.sub(turned, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A bar of code in a table is escaped for GitHub, and shown with its backslash here."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), html, flags=re.DOTALL)


def _file(path: str, config: MkDocsConfig) -> File:
    return File.generated(config, _site_path(path), abs_src_path=str(ROOT / path))


def _repository_path(page: File, link: str) -> str:
    """What the page's link means in the repository, where the page's source is."""
    assert page.abs_src_path is not None
    source = Path(page.abs_src_path).relative_to(ROOT).as_posix()
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_in_docs(path: str) -> bool:
    return path.startswith("docs/")


def _site_path(path: str) -> str:
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if _is_in_docs(path) else f"repository/{path}"
