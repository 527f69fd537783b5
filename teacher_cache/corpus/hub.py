"""Hub data sets: Parquet files are read by row groups; the `datasets` package streams everything else."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from delta_common.errors import UserError
from teacher_cache.corpus.documents import Cursor, Placed, Reader, content_of, make_document, require_column
from teacher_cache.corpus.files import file_reader, reason
from teacher_cache.corpus.messages import without_nulls
from teacher_cache.settings import CorpusSettings


def hub_reader(settings: CorpusSettings) -> Reader:
    """A reader of the data set, whose files are looked up here, once.

    Raises `UserError` naming corpus.source, subset or split.
    """
    # datasets takes a second to import and local corpora never need it.
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet

    try:
        builder = datasets.load_dataset_builder(settings.source, settings.subset, revision=settings.revision)
        if not isinstance(builder, Parquet):
            return Reader(partial(_read_stream, builder, settings), seeks=False)
        found = builder.config.data_files
    except Exception as error:  # the clients pass on errors of whichever HTTP library they use
        raise _unreadable(settings, error) from error
    if settings.split not in found:
        raise UserError(
            f"corpus.split {settings.split}: {settings.source} has no such split; set it to one of {', '.join(found)}"
        )
    return file_reader([str(where) for where in found[settings.split]], "parquet", settings)


def _read_stream(builder: Any, settings: CorpusSettings, start: Cursor) -> Iterator[Placed]:
    """Documents of a `datasets` stream, from the state in `start` on; at worst one file is reread up to there."""
    cursor = start
    try:
        stream = builder.as_streaming_dataset(split=settings.split)
        if start.state is not None:
            stream.load_state_dict(start.state)
        for record in stream:
            if cursor is start:
                require_column(settings, list(record), settings.source)
            content, name = content_of(without_nulls(record), settings), record.get(settings.id_column)
            label = f"{settings.split}:{cursor.item}"
            yield cursor, make_document(content, name, settings, place=label, where=settings.source)
            number = cursor.document + 1
            cursor = replace(cursor, document=number, item=number, state=stream.state_dict())
    except UserError:
        raise
    except Exception as error:  # the clients pass on errors of whichever HTTP library they use
        raise _unreadable(settings, error) from error


def hub_revision(settings: CorpusSettings) -> str | None:
    """The commit that the settings' revision means now, so that a later build notices a change."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(settings.source, revision=settings.revision).sha
    except Exception as error:  # the client passes on errors of whichever HTTP library it uses
        raise UserError(
            f"corpus.source {settings.source}: no such local path, and the Hub cannot be asked: {reason(error)}; "
            "check the path or the connection"
        ) from error


def _unreadable(settings: CorpusSettings, error: Exception) -> UserError:
    return UserError(
        f"corpus.source {settings.source}: the Hub data set cannot be read: {reason(error)}; "
        "check its name, corpus.subset and corpus.split, or give a local path"
    )
