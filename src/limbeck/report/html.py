"""Blocks as one HTML page that needs nothing else: figures and style are inside, no script, no request leaves it.

Every piece of text passes through `shown` exactly once, here.
"""

import base64
from html import escape
from importlib import resources

from limbeck.report.blocks import Answer, Block, Blocks, Bullets, Drawn, Heading, Paragraph, Sample, Source, Table
from limbeck.report.formats import visible


def render_html(blocks: Blocks, *, title: str) -> str:
    """The whole page. Figures that are not wide and follow one another stand side by side."""
    parts: list[str] = []
    beside: list[str] = []
    for block in blocks:
        if isinstance(block, Drawn) and not block.wide:
            beside.append(_figure(block, css="curve"))
            continue
        parts += [*_side_by_side(beside), _block(block)]
        beside = []
    body = "\n".join([*parts, *_side_by_side(beside)])
    return _PAGE.format(title=shown(title), style=_style(), body=body)


def shown(text: str) -> str:
    """Text of others as text: markup escaped, characters that change the direction of what follows made visible."""
    return escape(visible(text))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def _style() -> str:
    return (resources.files("limbeck.report") / "page.css").read_text(encoding="utf-8")


def _side_by_side(figures: list[str]) -> list[str]:
    return [f'<div class="figures">{"".join(figures)}</div>'] if figures else []


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{shown(text)}</h2>"
        case Paragraph(text, soft):
            return f'<p class="soft">{shown(text)}</p>' if soft else f"<p>{shown(text)}</p>"
        case Answer():
            return _answer(block)
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{shown(item)}</li>' for item in items)}</ul>"
        case Table():
            return _table(block)
        case Drawn():
            return _figure(block, css="wide")
        case Source(summary, text, is_open):
            state = " open" if is_open else ""
            return f"<details{state}><summary>{shown(summary)}</summary><pre>{shown(text)}</pre></details>"
        case Sample():
            return _sample(block)


def _answer(answer: Answer) -> str:
    paragraphs = "".join(f"<p>{shown(paragraph)}</p>" for paragraph in answer.paragraphs)
    return f'<div class="verdict {answer.outcome}"><strong>{shown(answer.headline)}</strong>{paragraphs}</div>'


def _figure(figure: Drawn, *, css: str) -> str:
    data, caption = base64.b64encode(figure.png).decode("ascii"), shown(figure.caption)
    image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
    return f'<figure class="{css}">{image}<figcaption>{caption}</figcaption></figure>'


def _table(table: Table) -> str:
    if not table.rows or table.shown == "file":
        return ""
    head = "".join(_cell("th", text, column, table) for column, text in enumerate(table.headers))
    rows = [
        f'<tr class="{table.marks.get(number, "arm")}">'
        + "".join(_cell("td", text, column, table) for column, text in enumerate(row))
        + "</tr>"
        for number, row in enumerate(table.rows)
    ]
    body = "\n".join(rows)
    open_tag = f'<div class="scroll" tabindex="0"><table class="{table.style}">'
    drawn = f"{open_tag}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    if table.shown == "folded":
        return f"<details><summary>{shown(table.title)}</summary>{drawn}</details>"
    return f"<h3>{shown(table.title)}</h3>{drawn}" if table.title else drawn


def _cell(tag: str, text: str, column: int, table: Table) -> str:
    kind = "words" if column in table.words else "number"
    return f'<{tag} class="{kind}">{shown(text)}</{tag}>'


def _sample(sample: Sample) -> str:
    text, loop = sample.completion, sample.loop
    if loop is None:
        completion = shown(text)
    else:
        start, stop = loop
        completion = f"{shown(text[:start])}<mark>{shown(text[start:stop])}</mark>{shown(text[stop:])}"
    note = f'<p class="soft">{shown(sample.note)}</p>' if sample.note else ""
    written = f'<pre dir="auto"><span class="prompt">{shown(sample.prompt)}</span>{completion}</pre>'
    return f'<div class="sample"><h3>{shown(sample.title)}</h3>{written}{note}</div>'
