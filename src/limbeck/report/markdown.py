"""Blocks as Markdown, with figures beside it as files. Text of others keeps no power there: markup in it is escaped."""

import re

from limbeck.report.blocks import Answer, Block, Blocks, Bullets, Drawn, Heading, Paragraph, Sample, Source, Table
from limbeck.report.formats import visible

_MARKUP = re.compile(r"([\\`*_\[\]|#~$])")


def render_markdown(blocks: Blocks, *, title: str) -> str:
    """The whole report; figures are taken from `figures/`."""
    return "\n\n".join([f"# {shown(title)}", *(part for block in blocks if (part := _block(block)))]) + "\n"


def shown(text: str) -> str:
    """One line, its markup escaped."""
    one_line = " ".join(visible(text).split("\n"))
    return _MARKUP.sub(r"\\\1", one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {shown(text)}"
        case Paragraph(text, soft):
            return f"*{shown(text)}*" if soft else shown(text)
        case Answer(_, headline, paragraphs):
            return "\n>\n".join(f"> {line}" for line in (f"**{shown(headline)}**", *map(shown, paragraphs)))
        case Bullets(items):
            return "\n".join(f"- {shown(item)}" for item in items)
        case Table():
            return _table(block)
        case Drawn(name, caption):
            return f"![{shown(caption)}](figures/{name}.png)\n\n*{shown(caption)}*"
        case Source(summary, text):
            return f"**{shown(summary)}**\n\n{_fenced(text)}"
        case Sample():
            return _sample(block)


def _table(table: Table) -> str:
    if not table.rows or table.shown == "file":
        return ""
    rule = [":--" if column in table.words else "--:" for column in range(len(table.headers))]
    rows = [list(map(shown, table.headers)), rule, *(list(map(shown, row)) for row in table.rows)]
    title = f"### {shown(table.title)}\n\n" if table.title else ""
    return title + "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _sample(sample: Sample) -> str:
    text = sample.completion
    if sample.loop is not None:
        start, stop = sample.loop
        text = f"{text[:start]}⟦{text[start:stop]}⟧{text[stop:]}"
    note = f"\n\n*{shown(sample.note)}*" if sample.note else ""
    return f"### {shown(sample.title)}\n\n{_fenced(f'{sample.prompt} → {text}')}{note}"


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"
