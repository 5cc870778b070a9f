"""How the page looks: in light and dark, on a phone and on paper. Nothing is fetched."""

CSS = """
:root { color-scheme: light dark; --ink: #1a1f24; --soft: #4a5560; --ground: #ffffff; --line: #c9d1d9; --tint: #f3f5f7;
  --link: #0b57a4; --most: #b23a14; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink); background: var(--ground);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p, li, figcaption { max-width: 44rem; overflow-wrap: anywhere; } .soft, figcaption { color: var(--soft); }
.verdict { border-left: .3rem solid var(--link); background: var(--tint); padding: .5rem 1rem; }
.verdict p:first-child { font-weight: 600; }
figure { margin: .5rem 0 1rem; } figcaption { padding: .3rem 0; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: .2rem solid var(--link); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border: 1px solid var(--line); text-align: right; font-weight: normal; }
th[scope=row] { background: var(--ground); position: sticky; left: 0; }
thead th { background: var(--tint); vertical-align: bottom; } th:first-child, .words :is(th, td) { text-align: left; }
.rate { background: color-mix(in srgb, var(--most) var(--share), var(--ground)); color: #000000; print-color-adjust: exact; }
.rate.deep { color: #ffffff; }
.stream { display: inline-block; padding: 0 .4rem; margin: .1rem; border: 1px solid var(--line); border-radius: .3rem;
  background: var(--tint); }
.spectra { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 0 1rem; }
svg { display: block; width: 100%; height: 4.5rem; border: 1px solid var(--line); fill: none; }
path { stroke: var(--line); vector-effect: non-scaling-stroke; } .curve { stroke: var(--link); stroke-width: 2; }
.cut { stroke: var(--most); stroke-width: 2; stroke-dasharray: 4 3; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8ecf0; --soft: #b4bec8; --ground: #14181c; --line: #3a444e;
  --tint: #1d2329; --link: #8cc4ff; } .rate { color: #ffffff; } .cut { stroke: #ff9a73; } }
@media print, (max-width: 40rem) { th:first-child { overflow-wrap: anywhere; min-width: 6rem; } }
@page { margin: 15mm; } @media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; } table { font-size: 8pt; } th { overflow-wrap: anywhere; } th, td { padding: .15rem .35rem; }
  h2 { break-after: avoid; } section, figure, tr { break-inside: avoid; } }
"""
DEEP = 86  # per cent of the strongest colour from which on white is read better on it than black, on a white page


def rate_cell(rate: float) -> str:
    """A cell of a table, the stronger in colour the higher the rate: from 0.2 to 0.8, in every report the same.

    Example:
        >>> rate_cell(0.35), rate_cell(0.8)
        ('<td class="rate" style="--share:25%">0.35</td>', '<td class="rate deep" style="--share:100%">0.80</td>')
    """
    share = round(100 * min(max((rate - 0.2) / 0.6, 0.0), 1.0))
    return f'<td class="rate{" deep" if share >= DEEP else ""}" style="--share:{share}%">{rate:.2f}</td>'
