"""README and documentation say what is true: commands compose, messages are those of the code, files are there."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from markdown_it import MarkdownIt
from omegaconf import OmegaConf

import gate_lightning
from gate_lightning.engine.command.used_keys import check_overrides, keys_of_task, keys_of_tool
from gate_lightning.engine.jobs.untrained import keys_measured
from tests.support.composition import composed
from tests.support.paths import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("README.md", "CONTRIBUTING.md", "data/README.md", "docs/*.md", "docs/design/*.md")
    for path in REPOSITORY.glob(pattern)
)
READ_FIRST = ("README.md", *(f"docs/{name}.md" for name in ("start", "own_images", "sweeps", "real_weights")))
CONTINUED = re.compile(r" *\\\n *")
MARKDOWN = MarkdownIt().enable("table")
COMMAND = re.compile(r"(?:python|-m|torchrun .*?) +(train|eval)\.py +(?!-sc )(\S.*)")  # -sc: completion of a shell


@pytest.mark.parametrize("page", [page for page in PAGES if re.match(r"docs/design/\d", page)])
def test_a_decision_has_a_title_a_date_and_a_status(page: str) -> None:
    title, empty, dated = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ") and not empty
    assert re.fullmatch(r"\d{4}-\d\d-\d\d · (accepted|replaced by \d{4})", dated)


@cache
def code(page: str) -> tuple[str, ...]:
    """Code blocks of a page, a command's lines joined, and code within its text."""
    tokens = MARKDOWN.parse((REPOSITORY / page).read_text(encoding="utf-8"))
    blocks = [token.content for token in tokens if token.type in ("fence", "code_block")]
    within = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    return tuple(CONTINUED.sub(" ", block) for block in (*blocks, *within))


def words_of(text: str) -> list[str]:
    """Overrides of a command: placeholders filled, without what stands for more, of a sweep the first values."""
    text = re.sub(r"^--(help|info|cfg) +[a-z-]+(?= |$)", "", text)  # an option and what it asks for
    text = re.sub(r"<[^<>]*>", "x", text.replace("<Tab>", "…")).replace("…/", "x/")
    words = [word for word in shlex.split(text, comments=True) if "…" not in word and word != "-m"]
    overrides = [word for word in words if not word.startswith("--")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    first = [next(one.sweep_string_iterator()) if one.is_sweep_override() else None for one in parsed]
    return [
        word if value is None else f"{one.key_or_group}={value}"
        for word, one, value in zip(overrides, parsed, first, strict=True)
    ]


def commands(page: str) -> list[tuple[str, str]]:
    """(train or eval, arguments) of the commands of a page."""
    found = [match.groups() for block in code(page) for match in COMMAND.finditer(block)]
    return list(dict.fromkeys(found))


@cache
def own_configuration(folder: Path) -> None:
    """Write the files of docs/extending.md below a folder ``my_conf``."""
    text = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    files = re.findall(r"`(my_conf/\S+\.yaml)`:\n\n((?: {4}.*\n)+)", text)
    files += re.findall(r"^    # (my_conf/\S+\.yaml)\n((?: {4}.*\n)+)", text, re.MULTILINE)
    assert len(files) > 4
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(re.sub(r"^ {4}", "", content, flags=re.MULTILINE))


def pages_with_commands() -> list[Any]:
    """All pages with commands; those that are not read first are for the slow tests: half a second a command."""
    quick = ("README.md", "docs/start.md")
    first = [page for page in READ_FIRST if commands(page)]
    rest = [page for page in PAGES if page not in first and commands(page)]
    marked = [page if page in quick else pytest.param(page, marks=pytest.mark.thorough) for page in first]
    return [*marked, *(pytest.param(page, marks=pytest.mark.slow) for page in rest)]


@cache
def settings_of_data_sets() -> set[str]:
    """Keys of ``dataset`` in any file of ``conf/dataset``."""
    files = (REPOSITORY / "conf/dataset").glob("*.yaml")
    return {str(key) for path in files for key in OmegaConf.load(path).get("dataset") or {}}


@pytest.mark.parametrize("page", pages_with_commands())
def test_commands_compose_and_set_what_is_read(page: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    own_configuration(folder)
    for program, text in commands(page):
        words = words_of(text.replace("$PWD", str(folder)))
        if not words:  # all of it stands for more
            continue
        if any(word.startswith(("run=", "resume=")) for word in words):  # what it reads is said by its folder
            own = [
                word for word in words if word.startswith("dataset.") and not any("dataset=" in one for one in words)
            ]
            assert {word.partition("=")[0].removeprefix("dataset.") for word in own} <= settings_of_data_sets()
            composed(*(f"++{word}" if word in own else word for word in words), name=program)
            continue
        config = composed(*words, name=program)
        if program == "train":
            read = keys_of_task(config)
        else:
            read = keys_of_tool(config) if "_target_" in (config.tool or {}) else keys_measured(config)
        check_overrides([word for word in words if not word.startswith("hydra.")], read, text)


@pytest.mark.parametrize("page", PAGES)
def test_named_programs_and_targets_are_there(page: str) -> None:
    text = "\n".join(code(page))
    for program in re.findall(r"python ((?:benchmarks|docs|notebooks)/\S+\.py)", text):
        assert (REPOSITORY / program).is_file()
    targets = re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|\s)make ([a-z-]+)", text)) <= set(targets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (REPOSITORY / page).read_text(encoding="utf-8")):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    sources = [*sorted((REPOSITORY / "gate_lightning").rglob("*.py")), REPOSITORY / "Makefile"]
    joined = re.sub(r'"\s*\n\s*f?r?"', "", "\n".join(path.read_text(encoding="utf-8") for path in sources))
    rows = re.findall(r"^\| `([^`]+)` \|", (REPOSITORY / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        for fragment in filter(None, (part.strip(" ;,.") for part in row.split("…"))):
            assert fragment in joined or "Error" in fragment


def test_the_python_reference_has_every_public_name() -> None:
    page = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    for name, module in gate_lightning._PUBLIC.items():
        assert f"::: {module}.{name}\n" in page


def test_figures_are_small_and_the_readme_is_short() -> None:
    sizes = {path.name: path.stat().st_size for path in (REPOSITORY / "docs/images").iterdir()}
    assert max(sizes.values()) < 150_000
    assert sum(sizes.values()) < 1_500_000
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    question = re.compile(r'^ *r?"""(?:What|Whether|Why|Where|Which|How|Those|When|Who)\b.*', re.MULTILINE)
    sources = {path: path.read_text(encoding="utf-8") for path in (REPOSITORY / "gate_lightning").rglob("*.py")}
    assert sum(source.count('    """') for source in sources.values()) > 1000
    found = [f"{path}: {line.strip()}" for path, source in sources.items() for line in question.findall(source)]
    assert not found
