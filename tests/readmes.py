"""Reads the READMEs: their blocks of commands and code, with the words above them."""

import ast
import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(
        page for folder in ("big_distill", "configs", "launch", "tests") for page in (ROOT / folder).rglob("README.md")
    ),
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """Describes a fenced block: its page and line, its language, the paragraph above it and its text."""

    page: pathlib.Path
    line: int
    language: str
    above: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self):
        """Returns the reason why no test runs the block, or None."""
        found = re.search(
            r"No test runs (?:this command|these commands), because ([^.]+)\.", " ".join(self.above.split())
        )
        return found and found[1]

    @property
    def commands(self):
        """Splits the text into commands, each a list of words; a comment is none."""
        words = (shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines())
        return [command for command in words if command]


def blocks(language):
    """Lists the blocks of all pages that are in a language."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            before = text[: match.start()]
            above = before.rstrip().rpartition("\n\n")[2]
            found.append(Block(page, before.count("\n") + 1, match[1], above, match[2]))
    return [block for block in found if block.language == language]


def modules():
    """Lists all modules by room, each with its docstring's first line, as big_distill/README.md has them."""
    package, lines = ROOT / "big_distill", []
    for path in sorted(package.rglob("*.py"), key=lambda path: (str(path.parent), path.name)):
        name = str(path.relative_to(package))
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        lines.append(f"- `{name}`: {docstring.splitlines()[0]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = ROOT / "big_distill" / "README.md"
    page.write_text(page.read_text().partition("- `__init__.py`")[0] + modules())
