"""What settings ask for: whether it is there already, whether the teacher can give it, the manifest and the writer."""

import os
import sys
from contextlib import ExitStack

import numpy as np
import torch

from delta_common.errors import UserError
from delta_common.machine.matrix_work import Operations
from teacher_cache.build.writer import METADATA_PATIENCE, CacheWriter, manifest_differences
from teacher_cache.corpus.bookmarks import Bookmarks
from teacher_cache.corpus.chat.template import read_template, template_digest
from teacher_cache.corpus.row_stream import CorpusRows
from teacher_cache.corpus.source import describe_corpus
from teacher_cache.format.arrays import default_rows_per_chunk
from teacher_cache.format.keys import BODY_KEY
from teacher_cache.format.manifest import (
    ALIGNMENT,
    FORMAT_NAME,
    FORMAT_VERSION,
    ChannelSampling,
    ConversationLayout,
    Manifest,
    RowLayout,
)
from teacher_cache.format.sealed import digest
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings
from teacher_cache.store.base import Store
from teacher_cache.store.metadata import is_intact, read_manifest
from teacher_cache.targets.states import channel_sampling
from teacher_cache.teacher.batch_size import find_batch_size
from teacher_cache.teacher.channel_sizes import channel_rms
from teacher_cache.teacher.documents_apart import require_documents_apart
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.group import group_size

PILOT_POSITIONS = 4096
"""Positions that channels are sized over; a little text will do, as sizes only decide how often each is drawn."""

COMPILING_SECONDS = 15.0
"""What compiling a teacher's layers takes at a start; 6 s where the compiler finds its own cache."""
COMPILING_SAVES = 0.25
"""Of the layers' time on a GPU."""
SHARE_OF_PEAK = 0.5
"""Of a card's matrix peak, what layers that are not compiled come to."""
UNKNOWN_PEAK = 100e12
"""Operations per second, for cards whose peak is not known, and for float32."""


def is_already_built(store: Store, settings: BuildSettings) -> bool:
    """Whether a finished cache made with these settings is there; found out without loading the teacher."""
    existing = read_manifest(store)
    if existing is None or settings_differences(existing, settings):
        return False
    same_extent = settings.rows.count in (None, existing.rows.count)
    return same_extent and is_intact(store, existing) and open_cache(store.path, allow_unfinished=True).is_finished


def open_writer(store: Store, settings: BuildSettings, teacher: Teacher) -> tuple[BuildSettings, CacheWriter]:
    """The cache's writer, and the settings with a batch size; the teacher is compiled if the manifest says so.

    If several builders start at once with a choice left to `auto`, one of them makes it, and the others take it over.
    """
    with ExitStack() as stack:
        if read_manifest(store) is None and _needs_a_pilot(settings, teacher):
            held = stack.enter_context(store.lock("pilot", patience=METADATA_PATIENCE))
            settings = recorded_choices(settings, existing := read_manifest(store))
            if not held and existing is None:
                raise UserError(f"{store.where('')}: another builder tries the teacher; run the same command again")
        settings = with_batch_size(settings, teacher)
        files = teacher.files()
        writer = CacheWriter.open(store, make_manifest(settings, teacher, files, store), files)
    if writer.manifest.compute.get("compiled"):
        teacher.compile_layers()
    if settings.rows.count is None:
        writer.bookmarks().save_length(writer.manifest.rows.count)
    return settings, writer


def _needs_a_pilot(settings: BuildSettings, teacher: Teacher) -> bool:
    """Whether it takes this machine or the teacher to know the manifest: several builders must come to the same."""
    left_open = "auto" in (settings.compute.batch_size, settings.teacher.compile)
    return left_open or settings.hidden.drawn(teacher.hidden_size) is not None


def recorded_choices(settings: BuildSettings, existing: Manifest | None) -> BuildSettings:
    """The settings; `auto` is replaced by what the existing cache was begun with."""
    if existing is None:
        return settings
    if settings.teacher.compile == "auto":
        settings = _with_compile(settings, bool(existing.compute.get("compiled", False)))
    if settings.compute.batch_size == "auto":
        settings = _with_rows_at_once(settings, int(existing.compute["batch_size"]))
    return settings


def with_compile(settings: BuildSettings, teacher: Teacher, rows: int) -> BuildSettings:
    """The settings; `auto` is replaced by whether compiling pays for so many rows, divided among builders."""
    if settings.teacher.compile != "auto":
        return settings
    if settings.teacher.parallel > 1:
        return _with_compile(settings, False)
    work, builders = teacher.matrix_work, int(os.environ.get("WORLD_SIZE", "1"))
    positions = rows * settings.rows.seq_len / builders
    peak = UNKNOWN_PEAK if work is None else work.peak
    return _with_compile(settings, compiling_pays(teacher.device, teacher.operations, peak, positions))


def compiling_pays(device: torch.device, operations: Operations | None, peak: float, positions: float) -> bool:
    """Whether a builder of so many positions saves more time than compiling takes.

    Never on a CPU, nor for a teacher whose operations are not known.
    """
    if device.type != "cuda" or operations is None:
        return False
    layers = operations.total(positions, counted=0) / (SHARE_OF_PEAK * peak)
    return COMPILING_SAVES * layers > COMPILING_SECONDS


def _with_compile(settings: BuildSettings, compiled: bool) -> BuildSettings:
    return settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"compile": compiled})})


def with_batch_size(settings: BuildSettings, teacher: Teacher) -> BuildSettings:
    """The settings; `auto` is replaced by the fastest batch size, found by trying."""
    if settings.compute.batch_size != "auto":
        return settings
    return _with_rows_at_once(settings, find_batch_size(teacher, settings.rows.seq_len))


def _with_rows_at_once(settings: BuildSettings, rows: int) -> BuildSettings:
    return settings.model_copy(update={"compute": settings.compute.model_copy(update={"batch_size": rows})})


def make_manifest(
    settings: BuildSettings, teacher: Teacher, files: dict[str, bytes], store: Store | None = None
) -> Manifest:
    """The manifest of the cache that these settings and this teacher make; `files` are the teacher's, by key.

    Without rows.count the rows of the corpus are counted, unless an earlier build into `store` has left their number.
    Whether to compile is decided behind that, where it is left to `auto`.
    """
    manifest = Manifest(
        format=FORMAT_NAME,
        format_version=FORMAT_VERSION,
        alignment=ALIGNMENT,
        teacher=teacher.identity(),
        tokenizer=teacher.tokenizer_identity(),
        corpus=describe_corpus(settings.corpus, template_digest(teacher.tokenizer.chat_template)),
        rows=_row_layout(settings, settings.rows.count or 1),
        targets=settings.targets.layout(),
        hidden=settings.hidden.layout(None),
        compute=_compute(settings),
        files={key: digest(data) for key, data in files.items()},
    )
    if settings.rows.count is None:
        bookmarks = None if store is None else Bookmarks(store, manifest)
        kept = None if bookmarks is None else bookmarks.length()
        count = kept or CorpusRows(settings, teacher.tokenizer, manifest.tokenizer, bookmarks).count()
        manifest = manifest.model_copy(update={"rows": _row_layout(settings, count)})
    channels = _channels(settings, teacher, manifest, None if store is None else read_manifest(store))
    compute = _compute(with_compile(settings, teacher, manifest.rows.count))
    return manifest.model_copy(update={"hidden": settings.hidden.layout(channels), "compute": compute})


def _channels(
    settings: BuildSettings, teacher: Teacher, manifest: Manifest, existing: Manifest | None
) -> ChannelSampling | None:
    """How channels of the averaged states are drawn: as in the existing cache, or by their sizes in the first rows."""
    drawn = settings.hidden.drawn(teacher.hidden_size)
    if drawn is None:
        return None
    known = None if existing is None else existing.hidden.channels
    if known is not None and known.drawn == drawn and len(known.counts) == teacher.hidden_size:
        return known
    count = min(manifest.rows.count, -(-PILOT_POSITIONS // manifest.seq_len))
    rows = list(CorpusRows(settings, teacher.tokenizer, manifest.tokenizer).take(range(count)))
    tokens, starts, counted = (
        torch.from_numpy(np.stack([getattr(row, name) for row in rows]))
        for name in ("tokens", "document_start", "loss_mask")
    )
    apart = settings.rows.context == "document"
    rms = channel_rms(teacher, tokens[:, :-1].long(), counted, starts if apart else None)
    if not np.isfinite(rms).all():
        raise UserError(
            f"teacher.dtype {settings.teacher.dtype}: the teacher's states are not finite in the first {count} rows; "
            "set teacher.dtype to float32"
        )
    return channel_sampling(rms, drawn)


def _row_layout(settings: BuildSettings, count: int) -> RowLayout:
    per_shard = settings.compute.rows_per_shard
    return RowLayout(
        mode=settings.rows.mode,
        context=settings.rows.context,
        seq_len=settings.rows.seq_len,
        count=count,
        rows_per_shard=per_shard,
        rows_per_chunk=default_rows_per_chunk(per_shard),
        conversations=_conversations(settings),
    )


def _conversations(settings: BuildSettings) -> ConversationLayout | None:
    if not settings.corpus.has_conversations:
        return None
    loss_on = settings.rows.loss_on
    assert loss_on is not None, "settled when settings are read"
    return ConversationLayout(loss_on=loss_on, truncate_at=settings.rows.truncate_at)


def _compute(settings: BuildSettings) -> dict[str, int | bool | str]:
    compiled = {"compiled": True} if settings.teacher.compile is True else {}
    return {"batch_size": settings.compute.rows_at_once, **compiled, **_cut(settings.teacher.parallel)}


def _cut(parallel: int) -> dict[str, int | str]:
    """Over how many devices a teacher is cut, and what is: each matrix, or the list of layers; empty for one device."""
    if parallel == 1:
        return {}
    return {"parallel": parallel, "cut": "layers" if group_size(parallel) == 1 else "tensors"}


def settings_differences(existing: Manifest, settings: BuildSettings) -> list[str]:
    """How a cache built with these settings would differ from the existing one, as far as the teacher is not needed."""
    settings = recorded_choices(settings, existing)
    template = existing.corpus.get("chat_template", {}).get("sha256")
    if settings.corpus.chat_template is not None:
        template = template_digest(read_template(settings.corpus.chat_template))
    asked = {
        "teacher": existing.teacher.model_copy(
            update={
                "name": settings.teacher.model,
                "dtype": settings.teacher.dtype,
                "attention": settings.teacher.attention,
                "revision": settings.teacher.revision or existing.teacher.revision,
            }
        ),
        "corpus": describe_corpus(settings.corpus, template),
        "rows": _row_layout(settings, existing.rows.count),
        "targets": settings.targets.layout(),
        "hidden": settings.hidden.layout(existing.hidden.channels),
        "compute": _compute(settings),
    }
    others = _other_channels(existing, settings) + _other_carry(existing, settings)
    wanted = existing.model_copy(update=asked).in_version(existing.format_version)
    return manifest_differences(existing, wanted) + others


def _other_channels(existing: Manifest, settings: BuildSettings) -> list[str]:
    had = None if existing.hidden.channels is None else existing.hidden.channels.drawn
    wanted = settings.hidden.drawn(existing.hidden_size)
    if had == wanted or existing.hidden.mean != settings.hidden.precision:
        return []  # another precision is said already
    return [f"hidden.channels: the cache has {had or 'all'}, these settings give {wanted or 'all'}"]


def _other_carry(existing: Manifest, settings: BuildSettings) -> list[str]:
    carried = "body" if BODY_KEY in existing.files else "head"
    wanted = settings.teacher.carry
    return [] if wanted == carried else [f"teacher.carry: the cache has {carried!r}, these settings give {wanted!r}"]


def say_what_students_miss(teacher: Teacher) -> None:
    """Say on stderr where the teacher's first layer reads more than its embedding, which is all a student reads."""
    if not teacher.embeds_plainly:
        print(
            "build: note: the teacher adds to its token embedding (learnt positions, a norm, a projection); the cache "
            "is right, but a student reads the embedding alone",
            file=sys.stderr,
        )


def require_fit(settings: BuildSettings, teacher: Teacher) -> None:
    """Raise `UserError` if the settings ask for what this teacher cannot give."""
    top_k = settings.targets.layout().top_k
    if top_k > teacher.vocab_size:
        raise UserError(
            f"targets.top_k {top_k}: larger than the teacher's vocabulary of {teacher.vocab_size}; "
            f"set it to {teacher.vocab_size} or less"
        )
    settings.hidden.require_fit(teacher.hidden_size, settings.rows.seq_len)
    if settings.rows.context == "document":
        rows = 2 if settings.compute.batch_size == "auto" else settings.compute.batch_size
        require_documents_apart(teacher, settings.teacher, rows)
    context = teacher.context_length
    if context is not None and settings.rows.seq_len > context:
        raise UserError(
            f"rows.seq_len {settings.rows.seq_len}: longer than the teacher's context of {context}; "
            f"set it to {context} or less"
        )
