"""One self-contained HTML page on which attention can be explored: `look` asks and records, `build` packs.

codec.py quantises the weights, trace_view.py reads a trace, page.py writes the file; page.html,
viewer.css and the scripts are what the file is made of. See docs/viewer.md.
"""

from regaze.toolkit.viewer.capture import look
from regaze.toolkit.viewer.page import LIMIT, NOTEBOOK_LIMIT, Page, Variant, build, of_records

__all__ = ["LIMIT", "NOTEBOOK_LIMIT", "Page", "Variant", "build", "look", "of_records"]
