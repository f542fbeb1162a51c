"""What `externalize check` found, as a person reads it: what stops a dump first."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from externalizer.model.finding import Finding, Verdict
from externalizer.model.report import Report

_HEADS = {
    Verdict.UNKNOWN: ("STOPS THE DUMP (unknown)", "bold red"),
    Verdict.REFUSED: ("STOPS THE DUMP", "bold red"),
    Verdict.NEEDS_CHOICE: ("STOPS THE DUMP until you choose", "bold red"),
    Verdict.SILENT_LOSS: ("LOST WITHOUT A WORD", "yellow"),
    Verdict.HANDLED: ("taken care of", "green"),
    Verdict.OK: ("no obstacle", ""),
}


def show(report: Report, out: Console) -> None:
    """Print all findings and the verdict."""
    for checked in report.findings:
        _finding(checked.finding, out)
    target = report.target
    stopping = sum(1 for each in report.findings if each.finding.refuses)
    if report.passes:
        out.print(f"{target.comm}[{target.pid}]: a dump with the files of `externalize {target.pid}` passes")
    else:
        out.print(f"{target.comm}[{target.pid}]: {stopping} found that stop a dump")


def _finding(finding: Finding, out: Console) -> None:
    head, style = _HEADS[finding.verdict]
    out.print(Text(f"{head}: {finding.subject}: {finding.evidence} [{finding.rule}]", style=style))
    if finding.holders:
        held = ", ".join(f"{holder.comm}[{holder.pid}] fd {holder.fd}" for holder in finding.holders[:8])
        more = f" and {len(finding.holders) - 8} more" if len(finding.holders) > 8 else ""
        out.print(Text(f"  held by: {held}{more}"))
    if finding.criu:
        out.print(Text(f"  criu would say: {finding.criu}"))
    for option in finding.options:
        value = "" if option.value is None else f" {option.value}"
        out.print(Text(f"  in the option files: {option.keyword}{value}"))
    if finding.remedy:
        out.print(Text(f"  what to do: {finding.remedy}"))
    out.print(Text(f"  more: {finding.doc}"))
