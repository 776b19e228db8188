"""The look of the report: one HTML page with its style, its scripts and Plotly inside, needing nothing from outside."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--text:#1f2328;--faint:#59636e;--line:#d8dee4;--card:#f6f8fa;--link:#0072b2;
--masked:#00785a;--erased:#b34700;--learned:#005f96;--untouched:#59636e;--altered:#8a5a00;--inconclusive:#59636e}
@media (prefers-color-scheme:dark){:root{--bg:#0e1117;--text:#e6edf3;--faint:#9198a1;--line:#30363d;--card:#161b22;
--link:#56b4e9;--masked:#2cc79b;--erased:#ff8c42;--learned:#56b4e9;--untouched:#9198a1;--altered:#e6a93c;
--inconclusive:#9198a1}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:960px;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.45rem;margin:3.2rem 0 .6rem;padding-top:.8rem;
border-top:1px solid var(--line)}h3{font-size:1.12rem;margin:2.4rem 0 .4rem}
p{margin:.4rem 0 .8rem}a{color:var(--link)}.faint,figcaption,small{color:var(--faint)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--mark,var(--line));border-radius:8px;
padding:1rem 1.2rem;margin:1rem 0}
.card h3{margin:0 0 .3rem}.verdict{font-weight:700;color:var(--mark)}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--faint)}th,td{padding:.32rem .7rem .32rem 0;border-bottom:1px solid var(--line);
vertical-align:top}tr:last-child td{border-bottom:0}td.number{white-space:nowrap}.scroll{overflow-x:auto}
figure{margin:.8rem 0}figcaption{font-size:.92rem}
.figure{width:100%;min-height:380px}
.downloads{display:flex;flex-wrap:wrap;gap:.3rem .9rem;font-size:.85rem;margin:.5rem 0}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--link)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;overflow-x:auto;
font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
ul{padding-left:1.2rem;margin:.4rem 0}
@media print{main{max-width:none}details{display:none}h3,figure{break-inside:avoid}}
"""

# Plotly travels compressed: a third of its size, unpacked by the browser itself.
SCRIPT = """
(async () => {
  const text = id => document.getElementById(id).textContent;
  const failed = why => document.querySelectorAll('.figure').forEach(d => {
    d.style.minHeight = 0; d.textContent = 'The figure cannot be drawn (' + why + '); its numbers are in the table below.'; });
  try {
    const packed = Uint8Array.from(atob(text('plotly')), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    const code = document.createElement('script');
    code.textContent = await new Response(stream).text();
    document.head.appendChild(code);
  } catch (error) { failed(error.message); return; }
  const templates = JSON.parse(text('templates'));
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const template = () => templates[dark.matches ? 'dark' : 'light'];
  const options = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d']};
  const drawn = [];
  const draw = div => {
    const spec = JSON.parse(text(div.id + '-data'));
    spec.layout.template = template();
    Plotly.newPlot(div, spec.data, spec.layout, options);
    drawn.push(div);
  };
  const watch = new IntersectionObserver(found => found.forEach(entry => {
    if (entry.isIntersecting) { watch.unobserve(entry.target); draw(entry.target); }
  }), {rootMargin: '600px'});
  document.querySelectorAll('.figure').forEach(div => watch.observe(div));
  const later = window.requestIdleCallback || (work => setTimeout(work, 200));
  const rest = () => {
    const div = document.querySelector('.figure:empty');
    if (div) { watch.unobserve(div); draw(div); later(rest); }
  };
  later(rest);
  window.addEventListener('beforeprint', () => document.querySelectorAll('.figure:empty').forEach(draw));
  dark.addEventListener('change', () => drawn.forEach(div => Plotly.relayout(div, {template: template()})));
  document.querySelectorAll('a[data-figure]').forEach(link => link.addEventListener('click', () => {
    link.href = URL.createObjectURL(new Blob([text(link.dataset.figure + '-data')], {type: 'application/json'}));
  }));
})();
"""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@cache
def plotly_packed() -> str:
    """Plotly's script, compressed, as base64 text."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def json_block(identifier: str, data: str) -> str:
    """JSON that a script of the page reads; it cannot end its own element."""
    safe = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f'<script type="application/json" id="{escape(identifier)}">{safe}</script>'


def page(title: str, body: str, templates: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The whole document.

    Args:
        title: of the document.
        body: HTML, escaped already; a `<div class="figure" id=NAME>` is filled with the figure of that name.
        templates: of Plotly, under `light` and `dark`.
        figures: name -> figure as JSON.
    """
    from plotly.utils import PlotlyJSONEncoder

    blocks = [json_block("templates", json.dumps(templates, cls=PlotlyJSONEncoder))]
    blocks += [json_block(f"{name}-data", data) for name, data in figures.items()]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            body,
            "</main>",
            *blocks,
            f'<script type="text/plain" id="plotly">{plotly_packed()}</script>' if figures else "",
            f"<script>{SCRIPT}</script>" if figures else "",
            "</body>\n</html>\n",
        ]
    )
