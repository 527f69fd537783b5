"""A conversation in a terminal, for `student-generate --chat`."""

import sys
from typing import TYPE_CHECKING

from delta_common.errors import UserError

if TYPE_CHECKING:
    from student.inference.chat import Chat
    from student.inference.generate import Sampling
    from student.inference.load import Writer

PROMPT = "> "


def talk(writer: "Writer", sampling: "Sampling", max_new_tokens: int) -> int:
    """Answer each line of stdin until it ends; in a terminal with history and editing, and a word on how to end."""
    from student.inference.chat import Chat

    chat, in_terminal = Chat(writer, sampling, max_new_tokens), sys.stdin.isatty()
    if in_terminal:
        import readline  # noqa: F401 - its import gives input() editing and a history

        print("Ctrl-D ends the conversation, Ctrl-C an answer.", file=sys.stderr)
    while True:
        try:
            words = input(PROMPT if in_terminal else "")
        except EOFError:
            print(end="\n" if in_terminal else "")
            return 0
        except UnicodeDecodeError as error:
            raise UserError(f"--chat: a line is not UTF-8 text ({error}); type or pipe UTF-8") from error
        if words.strip():
            _print_answer(chat, words)


def _print_answer(chat: "Chat", words: str) -> None:
    answer = chat.answer(words)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        answer.close()  # type: ignore[attr-defined]
    print(flush=True)
