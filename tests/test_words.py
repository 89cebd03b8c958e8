"""Checks that docstrings and comments are sentences: a verb comes first, or a subject and then its verb."""

import ast
import io
import re
import tokenize

from test_structure import PACKAGE

ROOT = PACKAGE.parent
FRAGMENT = re.compile("Of|What|Whether|How|Where|As|And|But|By|For|From|With|Which|Whatever|Nor")
VERB = re.compile("[A-Z][a-z-]+s,?")
NO_VERBS = re.compile("Its|This|Always|Across|Axes|Bytes|Channels|Classes|Images|Kernels|Layers|Logits|Losses|Weights")


def first_words(path):
    """Yields (node or token, first word) for each docstring and comment of a file."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (words := ast.get_docstring(node)):
            yield node, words.split()[0]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and (words := token.string.lstrip("#: ").split()):
            yield token, words[0]


def test_words_begin_as_a_sentence_does():
    paths = [path for folder in ("big_distill", "configs", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 200
    wrong = []
    for path in sorted(paths):
        if path.name == "digits.py":  # the config of the legacy runs stays as it was
            continue
        for where, word in first_words(path):
            of_a_function = isinstance(where, ast.FunctionDef) and PACKAGE in path.parents
            if FRAGMENT.fullmatch(word) or (of_a_function and (NO_VERBS.fullmatch(word) or not VERB.fullmatch(word))):
                line = where.start[0] if isinstance(where, tokenize.TokenInfo) else getattr(where, "lineno", 1)
                wrong.append(f"{path.relative_to(ROOT)}:{line} begins with {word!r}")
    assert not wrong, "\n".join(wrong)
