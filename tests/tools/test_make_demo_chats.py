"""`python tools/make_demo_chats.py OUT_DIR`, as the demo of conversations calls it."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from teacher_cache.corpus.source import iter_documents
from teacher_cache.settings import CorpusSettings
from tests.helpers import ROOT
from tests.helpers.tool_modules import script


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return script("make_demo_chats")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("chats") / "there"
    command = [sys.executable, "-W", "error", str(ROOT / "tools" / "make_demo_chats.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def records(made: Path, part: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_there_are_a_few_hundred_conversations_and_none_is_in_both_parts(made: Path) -> None:
    train, held_out = records(made, "train"), records(made, "heldout")
    assert 300 <= len(train) <= 600
    assert 20 <= len(held_out) <= 60
    assert not {r["id"] for r in train} & {r["id"] for r in held_out}


def test_the_builder_takes_all_of_them(made: Path) -> None:
    for part in ("train", "heldout"):
        settings = CorpusSettings(source=str(made / f"{part}.jsonl"), messages_column="messages")
        for document in iter_documents(settings):
            assert document.conversation is not None
            assert document.conversation.fault is None


def test_a_docstring_becomes_questions_and_answers(tool: ModuleType) -> None:
    source = (
        'def double(self, x, *, twice=False):\n    """Return x times two, or four times x when asked to.\n\n    '
        'More about it.\n\n    >>> double(2)\n    4\n    """'
    )
    [(name, node, docstring)] = tool.documented(ast.parse(source), "m.")
    talk = [(m["role"], m["content"]) for m in tool.conversation(name, node, docstring)]
    assert talk == [
        ("user", "What does the function m.double do in Python?"),
        ("assistant", "Return x times two, or four times x when asked to.\n\nMore about it."),
        ("user", "Which arguments does it take?"),
        ("assistant", "Its signature is `m.double(self, x, *, twice=False)`."),
        ("user", "Show me an example."),
        ("assistant", "```python\n>>> double(2)\n4\n```"),
        ("user", "And what does this print?\n\n```python\n>>> double(2)\n```"),
        ("assistant", "It prints\n\n```\n4\n```"),
    ]
    assert tool.conversation(name, node, "Short.") == []
