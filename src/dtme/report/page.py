"""A report as one page for a browser: the verdict first, then the figures as tables that can be read, copied and printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates
from dtme.plan.stream_layout import groups_per_block, without_common_prefix
from dtme.plan.table import rows_of
from dtme.report.notes import mean_over_pairs
from dtme.report.style import CSS, rate_cell
from dtme.report.verdict import list_advice, price_of, write_verdict

KINDS = {
    "modulate": "A modulator scales and shifts the tokens of one task.",
    "expand": "A task token is learnt for one task and joins its tokens for the length of a block.",
    "adapt": "Updates of a low rank are added to the weights of a block for one task.",
    "copies": "A copy is a block of its own for one task.",
}
_MOST_PAIRS = 10  # side by side, for they go on paper, too


def write_page(rates: ConflictRates, plan: Plan | None = None, results: Any = None) -> str:
    """The page, which fetches nothing and holds whatever the user named as text.

    Args:
        rates: A report.
        plan: One to draw over the trunk.
        results: Rows of results, each a mapping, or one mapping with such `rows`; shown as a table.

    Raises:
        ValueError: The plan is for other blocks, or results are no rows.
    """
    advice = "".join(f"<li>{escape(line)}</li>" for line in list_advice(rates))
    sections = [
        f'<section class="verdict" aria-label="Verdict">{_paragraphs(write_verdict(rates))}</section>',
        _section("What to try", f"<ol>{advice}</ol>"),
    ]
    if plan is not None:
        sections.append(_plan(plan, rates))
    if results is not None:
        sections.append(_results(results))
    sections += [_scores(rates), _pairs(rates), _sizes(rates), _spectra(rates)]
    sections += [_section("Notes", _paragraphs(rates.notes))] if rates.notes else []
    title = f"Conflicts of {', '.join(rates.tasks)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>'
        f'{escape(title)}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<p class="soft">{rates.samples} samples, {len(rates.blocks)} blocks, intervals at {rates.level:.0%}.</p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def _scores(rates: ConflictRates) -> str:
    """Per block: ranks, scores with half-widths, chance."""
    heads = ("range", "±", "chance", "null", "±", "chance", "directions in use")
    spaces = (
        (rates.range_score(), mean_over_pairs(rates.range_halfwidth), rates.range_chance_score()),
        (rates.null_score(), mean_over_pairs(rates.null_halfwidth), rates.null_chance_score()),
    )
    rows = []
    for place, block in enumerate(rates.blocks):
        cells = []
        for score, halfwidth, chance in spaces:
            cells += [rate_cell(float(score[place])), _plain(f"{halfwidth[place]:.2f}")]
            known = chance is not None and bool(chance[place].isfinite())
            cells.append(_plain(f"{float(chance[place]):.2f}" if chance is not None and known else "–"))
        cells.append(_plain(f"{rates.range_rank[place]} of {rates.widths[place]}"))
        rows.append((block, cells))
    told = (
        "Share of tokens at which two tasks conflict, mean over all pairs of tasks. Range: in the directions that the block's "
        f"tokens use, which hold {rates.variance_ratio:g} times the energy of the others; modulators act there. Null: in the "
        "directions they leave empty; task tokens act there. ±: half of the interval. Chance: the same between the gradients "
        "of different samples, which have nothing to do with each other."
    )
    return _section("Blocks", _table(told, heads, rows))


def _pairs(rates: ConflictRates) -> str:
    """Per pair of tasks and block, the rate in each space; as many pairs to a table as fit on paper."""
    pairs = list(combinations(range(len(rates.tasks)), 2))
    parts = []
    for name, rate in (("range", rates.range_rate), ("null", rates.null_rate)):
        for start in range(0, len(pairs), _MOST_PAIRS):
            some = pairs[start : start + _MOST_PAIRS]
            which = f", pairs {start + 1} to {start + len(some)} of {len(pairs)}" if len(some) < len(pairs) else ""
            heads = [f"{rates.tasks[i]} – {rates.tasks[j]}" for i, j in some]
            rows = [(block, [rate_cell(float(rate[b, i, j])) for i, j in some]) for b, block in enumerate(rates.blocks)]
            told = f"Share of tokens at which two tasks conflict, {name} space{which}; colours from 0.2 to 0.8."
            parts.append(_table(told, heads, rows))
    return _section("Pairs of tasks", "".join(parts))


def _sizes(rates: ConflictRates) -> str:
    """How hard each task pulls, and the weights that even it."""
    sizes = rates.gradient_size
    if sizes is None:
        return ""
    weights = rates.even_weights() if bool((sizes > 0).all()) else dict.fromkeys(rates.tasks, float("nan"))
    rows = [
        (task, [_plain(f"{float(sizes[:, place].mean()):.3g}"), _plain(f"{weights[task]:.3g}")])
        for place, task in enumerate(rates.tasks)
    ]
    told = "Size of each task's gradient at the tokens, mean over blocks, and the factor of its loss that evens it."
    return _section("How hard tasks pull", _table(told, ("gradient", "even weight"), rows, "task"))


def _spectra(rates: ConflictRates) -> str:
    """Per block, how the energy of its tokens falls off from direction to direction, and where the range space ends."""
    if rates.spectrum is None:
        return ""
    drawn = []
    for block, energy, rank, width in zip(rates.blocks, rates.spectrum, rates.range_rank, rates.widths, strict=True):
        depths = (-energy.clamp_min(1e-8).log10() * 6).tolist()
        curve = " ".join(f"{100 * x / (len(depths) - 1):.1f},{depth + 1:.1f}" for x, depth in enumerate(depths))
        told = f"{block}: the energy falls to {float(energy[-1]):.0e} of the strongest; {rank} of {width} directions are in use."
        drawn.append(
            f"<figure><figcaption>{escape(block)}: {rank} of {width}</figcaption>"
            f'<svg viewBox="0 0 100 50" preserveAspectRatio="none" role="img" aria-label="{escape(told)}">'
            f'<path d="M0 13H100M0 25H100M0 37H100"/><path class="cut" d="M{100 * (rank - 0.5) / max(width - 1, 1):.1f} 0V50"/>'
            f'<path class="curve" d="M{curve}"/></svg></figure>'
        )
    told = (
        "Energy of a block's tokens in each direction, from the strongest at the left to the weakest, relative to the strongest; "
        "every line further down is a hundredth. Left of the dashed cut lies the range space, right of it the null space."
    )
    return _section("Directions in use", f'<p class="soft">{told}</p><div class="spectra">{"".join(drawn)}</div>')


def _plan(plan: Plan, rates: ConflictRates) -> str:
    """The streams of every block, and what is inserted there."""
    inserted: dict[str, list[str]] = {block: [] for block in rates.blocks}
    for name, what, tasks, *_ in rows_of(plan):
        holder = next((block for block in rates.blocks if f"{name}.".startswith(f"{block}.")), None)
        if holder is None:
            raise ValueError(f"plan: block {name!r} is not among those of the report: {', '.join(rates.blocks)}.")
        inserted[holder].append(f"{what} for {tasks}" + ("" if name == holder else f" in {name[len(holder) + 1 :]}"))
    rows = []
    for block, groups in zip(rates.blocks, groups_per_block(plan, rates.blocks), strict=True):
        streams = "".join(f'<span class="stream">{escape(", ".join(group))}</span>' for group in groups)
        rows.append((block, [f"<td>{streams}</td>", _plain("; ".join(inserted[block]) or "–")]))
    told = (
        "Streams that leave each block, one box each, and what is inserted. Tasks share a stream of tokens until something of "
        "their own parts them; each further stream is another pass through the blocks behind."
    )
    lines = [price_of(plan, rates), " ".join(meaning for name, meaning in KINDS.items() if getattr(plan, name))]
    table = _table(told, ("streams", "inserts"), rows, kind="words")
    return _section("The plan over the trunk", f"{_paragraphs(filter(None, lines))}{table}")


def _results(results: Any) -> str:
    """Rows of results as they are."""
    rows = results.get("rows") if isinstance(results, Mapping) else results
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("results: a list of rows is wanted, each a mapping, or a mapping that holds them as 'rows'.")
    flat = [dict(_flatten(row)) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    label = "method" if "method" in names else next(iter(names), "row")
    heads = [name for name in names if name != label]
    body = [(str(row.get(label, "")), [_plain(row.get(name)) for name in heads]) for row in flat]
    meaning = "; delta_m is the mean gain over models of one task, in per cent" if "delta_m" in heads else ""
    told = f"As they were given{meaning}."
    return _section("Results", _table(told, heads, body, label))


def _flatten(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Plain values by name, those of a mapping in the row by both names; metrics go by their own."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((own if name == "metrics" else f"{name}, {own}", inner) for own, inner in _flatten(value))
        elif isinstance(value, str | int | float):
            yield name, value


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{heading}</h2>{body}</section>"


def _table(
    told: str, heads: Iterable[str], rows: Sequence[tuple[str, Sequence[str]]], corner: str = "", kind: str = ""
) -> str:
    """A table that scrolls where it is wider than the page, what it shows told above it; of blocks, if no corner is given."""
    prefix, names = ("", [name for name, _ in rows]) if corner else without_common_prefix([name for name, _ in rows])
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (corner or prefix or "block", *heads))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'
        for name, (_, cells) in zip(names, rows, strict=True)
    )
    return (
        f'<figure><figcaption>{escape(told)}</figcaption><div class="wide {kind}" tabindex="0" role="region" '
        f'aria-label="{escape(told)}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>'
    )


def _plain(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return f"<td>{escape(text)}</td>"


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
