"""Hooks of mkdocs: pages made from other files of the repository, links between them, and a check of requests.

The sources stay where a code host shows them (CONTRIBUTING.md, conf/ …); on the site they are pages like the others.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
#: page of the site → file of the repository that it shows
SHOWN = {
    "changelog.md": "CHANGELOG.md",
    "configuration/index.md": "docs/configuration.md",
    "contributing.md": "CONTRIBUTING.md",
    "data.md": "data/README.md",
    "embedded_model.md": "gate_lightning/assets/tiny/MODEL_CARD.md",
}
#: groups whose files a user does not choose by name
UNCHOSEN = ("local", "paths")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")
#: code is no place for links
CODE = re.compile(r"(```.*?```|`[^`\n]*`|^(?: {4}|\t).*?$)", re.DOTALL | re.MULTILINE)
REQUEST = re.compile(r"<(?:script|img|iframe|video|source|link)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)")
STYLE_REQUEST = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


def on_config(config: Any) -> Any:
    """Lists groups of the configuration and decisions in the navigation."""
    for section in config.nav:
        if "Reference" in section:
            entry = next(entry for entry in section["Reference"] if "Configuration" in entry)
            entry["Configuration"] = [entry["Configuration"], *(f"configuration/{group}.md" for group in groups())]
        if "Decisions" in section:
            section["Decisions"] = [section["Decisions"], *(f"design/{path.name}" for path in decisions())]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made here."""
    pages = {page: (REPOSITORY / source).read_text(encoding="utf-8") for page, source in SHOWN.items()}
    pages |= {f"configuration/{group}.md": group_page(group) for group in groups()}
    pages["configuration/index.md"] += groups_table()
    pages["design/index.md"] = decisions_page()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    for page, source in SHOWN.items():
        for image in sorted((REPOSITORY / source).parent.glob("*.png")):
            files.append(File.generated(config, f"{Path(page).stem}/{image.name}", abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    source = SHOWN.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target) or files.get_file_from_path(beside(page.file.src_uri, target)):
            return match[0]
        address = address_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), target)), page.file.src_uri)
        if address is None:  # a file that the site does not show
            return text if text.startswith("`") else f"{text} (`{posixpath.basename(target)}`)"
        start = posixpath.dirname(page.file.src_uri) or "."
        path, _, own = address.partition("#")
        return f"{image}[{text}]({posixpath.relpath(path, start)}{anchor or (own and f'#{own}')})"

    parts = CODE.split(markdown)
    return "".join(part if index % 2 else LINK.sub(moved, part) for index, part in enumerate(parts))


def on_post_build(config: Any) -> None:
    """Refuses a site whose pages would ask another host for anything."""
    site = Path(config.site_dir)
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        found = (STYLE_REQUEST if path.suffix == ".css" else REQUEST).findall(path.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{path.relative_to(site)} requests {found[0]}; the documentation works without network")


def beside(page: str, target: str) -> str:
    """Place on the site of what ``page`` names ``target``."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def address_of(path: str, page: str) -> str | None:
    """Page, or image, of the site that shows a file of the repository; None if the site does not show it.

    Raises:
        PluginError: there is no such file.
    """
    if not (REPOSITORY / path).exists():
        raise PluginError(f"{page} links to {path}, which is not there")
    shown = {source: name for name, source in SHOWN.items()}
    if path in shown:
        return shown[path]
    if path == "docs/design":
        return "design/index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    for source, name in shown.items():
        if posixpath.dirname(source) == posixpath.dirname(path) and path.endswith(".png"):
            return f"{Path(name).stem}/{posixpath.basename(path)}"
    if path.startswith("conf/") and path.count("/") > 1:
        group, name = path.removeprefix("conf/").split("/", 1)
        return f"configuration/{group}.md#{anchor_of(name.removesuffix('.yaml'))}"
    return None


def groups() -> list[str]:
    """Groups of the configuration, in the order of conf/train.yaml, then what only eval.py has."""
    return [name for name, _ in described_groups()]


def described_groups() -> list[tuple[str, str]]:
    """Groups with the comment of their line in conf/train.yaml and conf/eval.yaml."""
    lines = [line for name in ("train", "eval") for line in (CONF / f"{name}.yaml").read_text().splitlines()]
    found = [re.match(r"  - (\w+): .*?(?:# (.*))?$", line) for line in lines]
    return [(match[1], match[2] or "") for match in found if match and match[1] not in UNCHOSEN]


def groups_table() -> str:
    """Table of all groups and their values."""
    rows = ["| group | what it sets: some of its values |", "|---|---|"]
    rows += [f"| [`{name}`]({name}.md) | {comment} |" for name, comment in described_groups()]
    return "\n".join(["", *rows, ""])


def group_page(group: str) -> str:
    """All files of a group, as they are."""
    comment = dict(described_groups())[group]
    parts = [f"# {group}", f"`{group}=`: {comment}", f"The files of `conf/{group}/`, with the comments of their keys."]
    for path in sorted((CONF / group).rglob("*.yaml")):
        name = path.relative_to(CONF / group).with_suffix("").as_posix()
        parts += [f"## {name} {{#{anchor_of(name)}}}", f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def anchor_of(name: str) -> str:
    """Anchor of a file's heading on the page of its group."""
    return name.replace("/", "-")


def decisions() -> list[Path]:
    """Pages of docs/design, by number."""
    return sorted((REPOSITORY / "docs/design").glob("[0-9]*.md"))


def decisions_page() -> str:
    """List of all decisions."""
    rows = ["# Decisions", "Why things are as they are. One decision a page, with its date; the newest last.", ""]
    for path in decisions():
        title, _, state = path.read_text(encoding="utf-8").splitlines()[:3]
        rows.append(f"* {path.name[:4]} [{title.removeprefix('# ')}]({path.name}), {state.split(' · ')[0]}")
    return "\n".join([*rows[:2], "", *rows[3:], ""])
