"""What a verification found, as tables for a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from delta_common.progress import byte_size, duration
from teacher_cache.verify.objects import Findings

FAULTS_SHOWN = 20


def render_findings(findings: Findings) -> Group:
    """What was looked at, the first faults, and the verdict with its remedy."""
    speed = findings.bytes / max(findings.seconds, 1e-9)
    facts = Table(box=None, show_header=False)
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("cache", str(findings.path))
    facts.add_row("shards", f"{findings.shards_done:,} of {findings.shards_planned:,}")
    facts.add_row(
        "objects",
        f"{findings.objects:,}, {byte_size(findings.bytes)} in {duration(findings.seconds)} ({byte_size(speed)}/s)",
    )
    for name, measure in findings.measures.items():
        words = ", ".join(f"{part} {value:.4g}" for part, value in measure.items())
        facts.add_row(name, words)
    return Group(facts, *_verdict(findings))


def _verdict(findings: Findings) -> list[RenderableType]:
    if findings.is_sound:
        return [Text("sound", style="bold green")]
    faults = Table("fault", "shard", "object", "what is wrong", box=box.SIMPLE_HEAD)
    for fault in findings.faults[:FAULTS_SHOWN]:
        shard = "" if fault.shard is None else str(fault.shard)
        faults.add_row(Text(fault.kind), shard, Text(fault.key, overflow="fold"), Text(fault.problem, overflow="fold"))
    count, more = len(findings.faults), len(findings.faults) - FAULTS_SHOWN
    words = f"unsound: {count} fault{'s' * (count > 1)}" + (f", {more} of them not shown" if more > 0 else "")
    remedy = "teacher-cache repair PATH --config CONFIG puts damaged objects aside and builds them again"
    return [faults, Text(words, style="bold red"), Text(remedy)]
