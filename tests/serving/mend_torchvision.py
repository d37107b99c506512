"""Make torchvision's Python part importable where its compiled operators cannot be loaded.

vLLM imports Pixtral with every LLaVA, and Pixtral torchvision's transforms. A package index has one build of
torchvision, for CUDA builds of torch; beside a CPU build its import fails, because it describes the shapes of
two operators that are then not there. Run by `make test-vllm` after the installation; it finds nothing to do
a second time, or where the operators can be loaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_DECLARED = """

# Added by `make test-vllm` of regaze: the operators' names, for the description of their shapes.
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor boxes, Tensor scores, float least) -> Tensor")
"""


def main() -> None:
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise SystemExit("torchvision is not installed")
    path = Path(spec.origin).with_name("extension.py")
    text = path.read_text(encoding="utf-8")
    if "Added by `make test-vllm`" not in text:
        path.write_text(text + _DECLARED, encoding="utf-8")


if __name__ == "__main__":
    main()
