"""The gate's reports as one HTML page that needs nothing from outside: light and dark, wide and narrow. Pure."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from reviewclf.promotion.rules import GateReport, RuleResult


def report_html(reports: Sequence[GateReport], *, title: str, links: Mapping[str, str] | None = None) -> str:
    """Reports as a page.

    Parameters
    ----------
    reports : sequence of GateReport
        One section each.
    title : str
        Heading of the page.
    links : mapping of str to str, optional
        Address by text, shown below the heading.
    """
    listed = "".join(
        f'<a href="{html.escape(address, quote=True)}">{html.escape(text)}</a>'
        for text, address in (links or {}).items()
        if address.startswith(("http://", "https://"))
    )
    head = f"<h1>{html.escape(title)}</h1>" + (f"<nav>{listed}</nav>" if listed else "")
    return _PAGE.replace("{title}", html.escape(title)).replace("{body}", head + "".join(map(_section, reports)))


def _section(report: GateReport) -> str:
    failed = sum(not rule.passed for rule in report.rules)
    verdict = "passed" if report.passed else f"failed {failed} of {len(report.rules)} rules"
    against = "no champion to compare with" if report.champion is None else f"against champion version {report.champion}"
    facts = [against]
    facts += [f"{name} {digest[:12]}" for name, digest in (("dataset", report.dataset), ("gold", report.gold)) if digest]
    cells = "".join(map(_row, sorted(report.rules, key=lambda rule: rule.passed)))
    return (
        f'<section class="{_kind(report.passed)}"><header><h2>{html.escape(report.candidate)}</h2>'
        f'<p class="badge">{html.escape(verdict)}</p></header><p class="facts">{html.escape(" · ".join(facts))}</p>'
        "<table><thead><tr>"
        '<th scope="col">Rule</th><th scope="col" class="number">Value</th><th scope="col" class="number">Limit</th>'
        '<th scope="col">Verdict</th><th scope="col" class="number">n</th><th scope="col">Note</th></tr></thead>'
        f"<tbody>{cells}</tbody></table></section>"
    )


def _row(rule: RuleResult) -> str:
    value = f"{rule.value:.4g}" if rule.value is not None else ("none" if rule.passed else "unknown")
    verdict = "passed" if rule.passed else "failed"
    return (
        f'<tr class="{_kind(rule.passed)}"><th scope="row">{html.escape(rule.rule)}<small>{html.escape(rule.description)}'
        f'</small></th><td class="number value" data-name="value">{value}</td>'
        f'<td class="number limit" data-name="limit">{html.escape(rule.comparison)} {rule.limit:g}</td>'
        f'<td class="verdict">{verdict}</td><td class="number rows" data-name="n">{rule.n}</td>'
        f'<td class="note">{html.escape(rule.note)}</td></tr>'
    )


def _kind(passed: bool) -> str:
    return "pass" if passed else "fail"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root { color-scheme: light dark; --line: light-dark(#d9dee5, #333a44); --soft: light-dark(#5a6472, #9aa5b4);
  --card: light-dark(#ffffff, #1a1f27); --ground: light-dark(#f4f6f8, #10141a); --ink: light-dark(#16202c, #e6ebf2);
  --good: light-dark(#0a6b2c, #6fdc8c); --bad: light-dark(#b00020, #ff8f96);
  --good-ground: light-dark(#e3f4e8, #14301d); --bad-ground: light-dark(#fde7e9, #3b171b); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem;
  background: var(--ground); color: var(--ink); }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 0 0 1rem; }
a { color: light-dark(#0b57d0, #8ab4f8); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0; padding: 1rem 1.25rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem .75rem; }
h2 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere; }
.badge { margin: 0; border-radius: 99px; padding: .1rem .7rem; font-weight: 600; font-size: .9rem; }
.pass > header .badge { background: var(--good-ground); color: var(--good); }
.fail > header .badge { background: var(--bad-ground); color: var(--bad); }
.facts { color: var(--soft); margin: .35rem 0 .75rem; font-size: .9rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .6rem; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-size: .8rem; font-weight: 600; }
tbody th { font-weight: 600; width: 38%; overflow-wrap: anywhere; }
small { display: block; color: var(--soft); font-weight: 400; font-size: .85rem; line-height: 1.4; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
.verdict { font-weight: 600; white-space: nowrap; }
.pass > .verdict { color: var(--good); } .pass > .verdict::before { content: "\\2713\\00a0" / ""; }
.fail > .verdict { color: var(--bad); } .fail > .verdict::before { content: "\\2717\\00a0" / ""; }
tr.fail { background: color-mix(in srgb, var(--bad-ground) 55%, transparent); }
@media (max-width: 44rem) {
  body { padding: 1rem .6rem 2rem; } section { padding: .9rem .8rem; }
  table, tbody { display: block; } thead { position: absolute; left: -9999px; }
  tbody tr { display: grid; grid-template: "rule rule verdict" auto "value limit n" auto "note note note" auto / 1fr 1fr 1fr;
    gap: .3rem .6rem; border-top: 1px solid var(--line); padding: .6rem .5rem; margin: 0 -.5rem; }
  th, td { display: block; border: 0; padding: 0; } tbody th { grid-area: rule; width: auto; }
  .verdict { grid-area: verdict; text-align: right; } .value { grid-area: value; } .limit { grid-area: limit; }
  .rows { grid-area: n; } .note { grid-area: note; } .note:empty { display: none; }
  td.number { text-align: left; } td.rows { text-align: right; }
  td.number::before { content: attr(data-name) "\\00a0"; color: var(--soft); font-size: .85rem; }
}
</style></head><body><main>{body}</main></body></html>
"""
