"""Conversations from a file to a cache, and what becomes of them there."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from cached_distillation import CacheDataset
from delta_common.errors import UserError
from student.cli import evaluate as eval_cli
from student.cli import train as train_cli
from student.export.write import export_student
from student.inference.chat import Chat
from student.inference.generate import Sampling
from student.inference.load import load_export
from teacher_cache.build.job import build
from teacher_cache.build.plan import make_plan, render_plan
from teacher_cache.format.arrays import ROLES
from teacher_cache.inspect.page import render_page
from teacher_cache.inspect.rows import view_row
from teacher_cache.inspect.summary import identity_facts, summarize
from teacher_cache.inspect.tokens import token_data
from teacher_cache.read.cache import open_cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import BuildSettings
from teacher_cache.store.open import open_store
from teacher_cache.verify.content import row_problems, verify_bytes_and_content
from tests.helpers.chat_families import FAMILIES, conversations
from tests.helpers.small_training import SMALL
from tests.helpers.tiny_teacher import save_tiny_teacher

CHATS = conversations(FAMILIES["ChatML"], 40)
Settings = Callable[..., BuildSettings]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher over bytes with a chat template, whose end of a turn is a special token."""
    folder = save_tiny_teacher(tmp_path_factory.mktemp("teacher"), max_position_embeddings=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = FAMILIES["ChatML"].template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings(talking: Path, tmp_path: Path) -> Settings:
    def make(records: list[dict[str, Any]] | None = None, **sections: dict[str, Any]) -> BuildSettings:
        source = tmp_path / "chats.jsonl"
        records = [{"messages": messages} for messages in CHATS] if records is None else records
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        given = {
            "teacher": {"model": str(talking), "dtype": "float32"},
            "corpus": {"source": str(source), "messages_column": "messages", **sections.get("corpus", {})},
            "rows": {"seq_len": 300, **sections.get("rows", {})},
            "targets": {"top_k": 4, "samples": 4},
            "compute": {"batch_size": 2, "rows_per_shard": 4},
        }
        return BuildSettings.model_validate(given)

    return make


def spoken(cache: Any) -> str:
    """The text of all labels, in order."""
    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    rows = cache.rows(range(len(cache)))
    text: str = tokenizer.decode(rows.tokens[:, 1:][rows.loss_mask])
    return text


def answers(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] + "<|im_end|>" for message in messages if message["role"] == "assistant"]


def test_only_what_the_assistant_says_is_computed_and_counted(settings: Settings, tmp_path: Path) -> None:
    build(settings(rows={"mode": "document", "seq_len": 500}), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    assert spoken(cache) == "".join(answer for messages in CHATS for answer in answers(messages))
    rows = cache.rows(range(len(cache)))
    assert rows.ids is not None
    assert not rows.ids[~rows.loss_mask].any()
    assert rows.role is not None
    assert (rows.role[rows.loss_mask] == ROLES.index("assistant")).all()
    assert not list(row_problems(rows, cache.manifest))
    wrong = {**rows.arrays, "role": np.where(rows.loss_mask, ROLES.index("user"), rows.role).astype(np.uint8)}
    [problem] = row_problems(CachedRows(cache.manifest, wrong), cache.manifest)
    assert problem.startswith("role: counts what others than the assistant say")
    assert {view.role for view in view_row(cache, 0) if view.counted} == {"assistant"}
    labels = CacheDataset(cache.path)[0]["labels"].numpy()
    assert (labels != -100).tolist() == rows.loss_mask[0].tolist()
    counts = sum(int(n) for commit in cache.commits.values() for n in (commit.roles or {}).values())
    assert counts == rows.loss_mask.size
    assert verify_bytes_and_content(open_store(tmp_path / "cache")).is_sound


def test_packed_rows_hold_the_same_answers_and_may_be_begun_anywhere(settings: Settings, tmp_path: Path) -> None:
    asked = settings(rows={"seq_len": 500})
    build(asked, tmp_path / "whole")
    whole = open_cache(tmp_path / "whole")
    assert whole.manifest.rows.context == "document"
    every = sorted(answer for messages in CHATS for answer in answers(messages))
    assert sorted(part + "<|im_end|>" for part in spoken(whole).split("<|im_end|>")[:-1]) == every
    for shard in (2, 0, 1):
        build(asked, tmp_path / "parts", range(shard, shard + 1))
    build(asked, tmp_path / "parts")
    parts = open_cache(tmp_path / "parts")
    assert {n: commit.objects for n, commit in parts.commits.items()} == {
        n: commit.objects for n, commit in whole.commits.items()
    }


def run_command(program: Any, *words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program.app.name[0], *words])
        with pytest.raises(SystemExit) as stop:
            program.main()
    return int(stop.value.code or 0)


def test_a_student_learns_talks_and_is_measured_by_role(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the cache to an export that carries the template, with a mask that counts answers alone."""
    build(settings(rows={"count": 8}), tmp_path / "cache")
    build(settings(rows={"loss_on": "all", "count": 4}), tmp_path / "all")
    words = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    assert run_command(train_cli, *words, *SMALL) == 0
    samples = json.loads((tmp_path / "run" / "summary.json").read_text())["samples"]
    assert all(sample["prompt"].endswith("<|im_start|>assistant\n") for sample in samples)
    capsys.readouterr()
    assert run_command(eval_cli, str(tmp_path / "run"), "--cache", str(tmp_path / "all"), "--json") == 0
    found = json.loads(capsys.readouterr().out)["by_role"]
    assert {"user", "assistant", "template"} <= found.keys()
    rows = open_cache(tmp_path / "all").rows(range(4))
    assert rows.role is not None
    for role in found:
        counted = (rows.role == ROLES.index(role)) & rows.loss_mask
        assert found[role]["tokens"] == counted.sum()
    source = str(tmp_path / "chats.jsonl")
    assert run_command(eval_cli, str(tmp_path / "run"), "--corpus", source, "--json") == 0
    assert json.loads(capsys.readouterr().out)["by_role"].keys() == {"assistant"}
    assert run_command(eval_cli, str(tmp_path / "run"), "--cache", str(tmp_path / "all")) == 0
    assert "by who speaks" in capsys.readouterr().out
    export_student(tmp_path / "run", tmp_path / "export")
    assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template == FAMILIES["ChatML"].template
    writer = load_export(tmp_path / "export", torch.device("cpu"))
    assert "".join(Chat(writer, Sampling(), 3).answer("Hello"))


def test_another_template_is_another_cache(settings: Settings, tmp_path: Path) -> None:
    build(settings(), tmp_path / "cache")
    file = tmp_path / "other.jinja"
    file.write_text(FAMILIES["ChatML"].marked)
    with pytest.raises(UserError, match=r"corpus.chat_template"):
        build(settings(corpus={"chat_template": str(file)}), tmp_path / "cache")
    build(settings(corpus={"chat_template": str(file)}), tmp_path / "other")
    other = open_cache(tmp_path / "other")
    assert other.manifest.corpus["chat_template"]["from"] == "file"
    assert AutoTokenizer.from_pretrained(other.tokenizer_folder).chat_template == FAMILIES["ChatML"].marked
    assert spoken(other) == spoken(open_cache(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"rows.conversations.loss_on: the cache has 'assistant'"):
        build(settings(rows={"loss_on": "last"}), tmp_path / "cache")


def test_bad_conversations_are_counted_and_the_others_are_built(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{"messages": messages} for messages in CHATS[:6]]
    bad = [{"messages": []}, {"messages": [{"role": "narrator", "content": "x"}]}, {"messages": CHATS[0][:1]}]
    build(settings([*bad, *good]), tmp_path / "cache")
    said = capsys.readouterr().err
    assert "3 conversations give no row" in said
    assert "1 with the role 'narrator' (first: chats.jsonl:2)" in said
    with pytest.raises(UserError, match="no conversation has a label; 3 conversations give no row"):
        build(settings(bad), tmp_path / "none")


def test_parquet_holds_the_same_conversations(settings: Settings, tmp_path: Path) -> None:
    build(settings(), tmp_path / "lines")
    source = tmp_path / "chats.parquet"
    pq.write_table(pa.table({"messages": CHATS}), source)
    build(settings(corpus={"source": str(source)}), tmp_path / "parquet")
    lines, parquet = (open_cache(tmp_path / name) for name in ("lines", "parquet"))
    assert np.array_equal(lines.tokens(range(len(lines))), parquet.tokens(range(len(parquet))))


def test_prompts_and_completions(settings: Settings, tmp_path: Path) -> None:
    records = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(20)]
    columns = {"messages_column": None, "prompt_column": "prompt", "completion_column": "completion"}
    build(settings(records, corpus=columns, rows={"seq_len": 30}), tmp_path / "cache")
    assert sorted(spoken(open_cache(tmp_path / "cache")).split("<|endoftext|>")[:-1]) == sorted(
        record["completion"] for record in records
    )


def test_inspect_and_plan_say_what_counts_and_what_is_padding(settings: Settings, tmp_path: Path) -> None:
    asked = settings()
    build(asked, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    rows = cache.rows(range(len(cache)))
    assert rows.role is not None
    summary = summarize(cache)
    padding = float((rows.role == ROLES.index("padding")).mean())
    assert summary["padding"] == pytest.approx(padding)
    assert summary["text_tokens"] == (rows.role != ROLES.index("padding")).sum()
    assert summary["bytes_per_text_token"] == summary["bytes"] / summary["text_tokens"]
    facts = identity_facts(summary)
    assert f"{padding:.1%} of positions are padding" in facts["tokens"]
    assert facts["roles"].endswith("answers count")
    assert "bytes per counted token" in facts["size"]
    shown = token_data(cache, [0], (0, 40)).json["rows"][0]["roles"]
    assert shown == [ROLES[code] for code in rows.role[0, :40]]
    page = render_page(cache, token_data(cache, [0], (0, 40)))
    assert "tokens that count" in page
    assert "bytes per counted token" in page
    plan = make_plan(asked, None)
    assert plan.rows == len(cache)
    assert plan.skipped == ""
    assert 0 < plan.counted < 1
    console = Console(width=120, file=io.StringIO())
    console.print(render_plan(plan))
    assert f"{plan.padding:.1%} are padding; {plan.counted:.1%} of the others count" in console.file.getvalue()
