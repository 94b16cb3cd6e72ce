"""What building the pages needs beyond mkdocs: files from outside docs/, and sources to read docstrings from.

A page names a file of the repository by its path from docs/, ``../results/standard/report/index.html``, so
that the link also works where the repository is browsed. Here such files join the site, without the ``../``.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
AT_ROOT = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that lie in the root of the repository; they name files by their path from there."""
SOURCES = ("__init__.py", "_errors.py", "_registry.py", "models", "attacks", "bench")
OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
INSIDE = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")
_folders: list[Path] = []


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Show mkdocstrings the sources as the package `robustode`, whatever the checkout is called."""
    folder = Path(tempfile.mkdtemp())
    _folders.append(folder)
    (folder / "robustode").mkdir()
    for name in SOURCES:
        (folder / "robustode" / name).symlink_to(ROOT / name)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(folder)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages name."""
    named = set(AT_ROOT)
    for file in files.documentation_pages():
        if file.src_uri.endswith(".md"):
            named.update(OUTSIDE.findall(file.content_string))
    for page in AT_ROOT:
        paths = INSIDE.findall((ROOT / page).read_text(encoding="utf-8"))
        named.update(path for path in paths if not path.startswith("docs/"))
    for path in sorted(named):
        if (ROOT / path).is_file():  # a link to what is not there fails the strict build
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to files of the repository lead to their copies in the site."""
    if page.file.src_uri in AT_ROOT:
        return markdown.replace("](docs/", "](")
    return OUTSIDE.sub(r"](\1", markdown)


def on_shutdown() -> None:
    """Remove what `on_config` made."""
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)
