"""Write conversations without a network: questions about Python's standard library, answered by its own docstrings.

Usage: python tools/make_demo_chats.py OUT_DIR [--held-out-share 0.1]

A conversation is about one public class or function that has a docstring: what it is for, its arguments, and, where the
docstring has a doctest, an example or what the example prints. Sources are read without importing them. Writes
OUT_DIR/train.jsonl and OUT_DIR/heldout.jsonl, a conversation in a line; the same Python gives the same bytes.
"""

import argparse
import ast
import doctest
import json
from collections.abc import Iterator
from pathlib import Path

from make_demo_corpus import FUNCTIONS, is_held_out, module_files, shuffled

Message = dict[str, str]

MOST_CONVERSATIONS = 600
SHORTEST_ANSWER, LONGEST_ANSWER = 60, 1200
"""Characters of a docstring's first paragraphs that make an answer."""
MOST_EXAMPLES = 3


def conversations() -> Iterator[tuple[str, list[Message]]]:
    """Each conversation with the name it is about."""
    for module, path in module_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, node, docstring in documented(tree, f"{module}."):
            messages = conversation(name, node, docstring)
            if messages:
                yield name, messages


def documented(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.AST, str]]:
    """Public classes, functions and methods with their docstrings, in the order of the source."""
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name, docstring = f"{prefix}{node.name}", ast.get_docstring(node)
        if docstring:
            yield name, node, docstring
        if isinstance(node, ast.ClassDef):
            yield from documented(node, f"{name}.")


def conversation(name: str, node: ast.AST, docstring: str) -> list[Message]:
    """Questions and answers about one name; none where its docstring says too little or too much."""
    said = words_of(docstring)
    if not SHORTEST_ANSWER <= len(said) <= LONGEST_ANSWER:
        return []
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    messages = turn(f"What does the {kind} {name} do in Python?", said)
    if isinstance(node, FUNCTIONS) and arguments_of(node):
        messages += turn("Which arguments does it take?", f"Its signature is `{name}({ast.unparse(node.args)})`.")
    examples = doctest.DocTestParser().get_examples(docstring)[:MOST_EXAMPLES]
    if examples:
        shown = "".join(prompted(example.source) + example.want for example in examples).rstrip()
        messages += turn("Show me an example.", f"```python\n{shown}\n```")
    last = next((example for example in reversed(examples) if example.want.strip()), None)
    if last is not None:
        question = f"And what does this print?\n\n```python\n{prompted(last.source).rstrip()}\n```"
        messages += turn(question, f"It prints\n\n```\n{last.want.rstrip()}\n```")
    return messages


def words_of(docstring: str) -> str:
    """The paragraphs before the first example."""
    before = docstring.partition(">>>")[0]
    return "\n\n".join(part.strip() for part in before.split("\n\n") if part.strip())


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of its arguments, but for `self` and `cls`."""
    return [argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)][
        int(bool(node.args.args) and node.args.args[0].arg in ("self", "cls")) :
    ]


def prompted(source: str) -> str:
    """An example's source as the interpreter shows it."""
    first, *others = source.splitlines()
    return "".join(f"{mark} {line}\n" for mark, line in [(">>>", first), *(("...", line) for line in others)])


def turn(question: str, answer: str) -> list[Message]:
    """A question and its answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def main() -> None:
    """Write both parts and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for train.jsonl and heldout.jsonl")
    parser.add_argument("--held-out-share", type=float, default=0.1, help="share of conversations held out")
    arguments = parser.parse_args()
    by_name = dict(conversations())
    records = shuffled([{"id": name, "messages": messages} for name, messages in by_name.items()])
    arguments.out.mkdir(parents=True, exist_ok=True)
    share = arguments.held_out_share
    for part, held_out, most in (("train", False, MOST_CONVERSATIONS), ("heldout", True, share * MOST_CONVERSATIONS)):
        chosen = [r for r in records if is_held_out(str(r["id"]), share) == held_out][: int(most)]
        path = arguments.out / f"{part}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in chosen), encoding="utf-8")
        turns = sum(len(r["messages"]) for r in chosen if isinstance(r["messages"], list))
        print(f"{path}: {len(chosen)} conversations, {turns} messages")


if __name__ == "__main__":
    main()
