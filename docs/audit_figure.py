"""Draw assets/audit.png from assets/audit.json, and write its page.

    python docs/audit_figure.py

`python benchmarks/pages.py` writes the tables of audit.md from the same file.
"""

from __future__ import annotations

from pathlib import Path

from regaze.audit import load_audit
from regaze.audit.figure import audit_figure
from regaze.audit.page import audit_page

ASSETS = Path(__file__).resolve().parent / "assets"


def main() -> None:
    found = load_audit(ASSETS / "audit.json")
    audit_figure(found, path=ASSETS / "audit.png")
    (ASSETS / "audit.html").write_text(audit_page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
