"""One self-contained HTML page on which attention can be explored.

    answer_page   capture.py     ask a question, record the attention, build the page
    record_page   page.py        the page of a record
    build_page    page.py        the page of traces, a group of layers at a time

trace_view.py reads a trace, codec.py quantises the weights, and template.py fills assets/page.html with
the data, the style and the scripts of that folder. See docs/guide/viewer.md.
"""

from regaze.toolkit.viewer.capture import answer_page
from regaze.toolkit.viewer.page import PAGE_BYTES, Page, Variant, build_page, record_page

__all__ = ["PAGE_BYTES", "Page", "Variant", "answer_page", "build_page", "record_page"]
