"""Findings in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from experiments.dense.checking.findings import Findings, some_of

_MARKS = {"fact": "[dim]·[/]", "note": "[yellow]![/]", "error": "[red]✗[/]"}


def show(findings: Findings, console: Console, *, names: int = 20) -> None:
    """Print facts, then what is worth knowing, then what a run would fail of, and a verdict.

    Args:
        findings: Of a check.
        console: Where to.
        names: How many files of a finding are named.
    """
    console.print(f"[bold]{findings.suite}[/] in {escape(str(findings.data))}")
    for level, mark in _MARKS.items():
        for finding in (each for each in findings.found if each.level == level):
            _print(console, f" {mark} {escape(finding.about)}: {escape(finding.said)}")
            if len(finding.names) > 1 or (finding.names and finding.names[0] not in finding.said):
                _print(console, f"     [dim]{escape(some_of(finding.names, most=names))}[/]")
    count = len(findings.errors)
    verdict = (
        f"[red]A run would fail, of {count} thing{'s' if count > 1 else ''}.[/]"
        if count
        else "[green]Fit for a run.[/]"
    )
    console.print(verdict)


def _print(console: Console, line: str) -> None:
    """In one line however long, so that a path can be copied."""
    console.print(line, highlight=False, soft_wrap=True)
