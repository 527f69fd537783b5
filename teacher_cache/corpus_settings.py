"""What a user may set about the text and how it becomes rows."""

from typing import Annotated, Literal

from pydantic import Field

from delta_common.settings_file import FrozenSettings

PositiveInt = Annotated[int, Field(ge=1)]


class CorpusSettings(FrozenSettings):
    """Where the documents come from."""

    source: str
    """Hub data set, or a local file, folder or glob of Parquet, JSONL (.gz, .zst) or text files."""
    format: Literal["auto", "parquet", "jsonl", "text", "hub"] = "auto"
    """`auto` goes by the files' endings; a source that is no local path is a Hub data set."""
    subset: str | None = None
    """Configuration of a Hub data set, such as `sample-10BT`."""
    split: str = "train"
    """Split of a Hub data set."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""
    text_column: str = "text"
    """Column or key that holds a document's text."""
    id_column: str = "id"
    """Column or key that names a document; without it a document is named by its file and place."""
    max_documents: PositiveInt | None = None
    """Stop after this many documents."""


class RowSettings(FrozenSettings):
    """How documents become rows of seq_len + 1 tokens."""

    seq_len: PositiveInt = 512
    """Positions a row, T; one further token is the last position's label."""
    mode: Literal["packed", "document"] = "packed"
    """`packed` joins documents by EOS; `document`, the paper's, gives each a row, truncated or padded."""
    context: Literal["row", "document"] = "row"
    """What a position sees of its row: all before it, across documents, or with `document` its own document only."""
    count: PositiveInt | None = None
    """Rows to build; without it as many as the corpus gives, which takes a pass of tokenising to know."""
