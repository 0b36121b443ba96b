"""What the documentation names is there: commands and their options, files, methods, layouts."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from atlas_jax.cli._app import app
from atlas_jax.names import METHOD_NAMES
from atlas_jax.sae._formats import FORMATS

HOME = Path(__file__).parent.parent
FILES = HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").glob("*.md"))
PAGES = {str(path.relative_to(HOME)): path for path in FILES}
COMMAND = typer.main.get_command(app)


def commands(text: str) -> list[list[str]]:
    """The words of every ``atlas-jax`` line in the bash blocks of a page."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).replace("\\\n", " ")
    found = re.findall(r"atlas-jax [^\n\"]*(?:\"[^\n\"]*\"[^\n\"]*)*", blocks)
    return [shlex.split(line.split("&&")[0], comments=True)[1:] for line in found]


def unknown(words: list[str]) -> list[str]:
    """The words of a command line that are no command or no option of it."""
    command = COMMAND
    while hasattr(command, "commands"):
        if words[0] not in command.commands:
            return words[:1]
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    return [word for word in words if word.startswith("--") and word not in options]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_links_are_right(page):
    text = PAGES[page].read_text()
    assert [unknown(words) for words in commands(text)] == [[]] * len(commands(text))
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert [link for link in links if link and not (PAGES[page].parent / link).exists()] == []
    named = re.findall(r"`((?:tests|benchmarks|notebooks|docs|atlas_jax)/[\w/.]+)`", text)
    assert [path for path in named if not (HOME / path).exists()] == []


def test_the_check_of_commands_can_fail():
    own = (HOME / "docs" / "own-models.md").read_text()
    assert len(commands(own)) == 18
    assert unknown(["atlas", "buid", "--out", "x"]) == ["buid"]
    assert unknown(["steer", "run", "--strengh", "1"]) == ["--strengh"]


def test_methods_and_layouts_have_a_row():
    papers, formats = ((HOME / "docs" / name).read_text() for name in ("paper-to-code.md", "formats.md"))
    assert [name for name in METHOD_NAMES if not re.search(rf"[`.]{name}`", papers)] == []
    assert [name for name in FORMATS if f"| `{name}`" not in formats] == []


def test_the_readme_is_short():
    assert len(PAGES["README.md"].read_text().splitlines()) <= 130
