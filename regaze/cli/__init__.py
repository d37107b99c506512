"""The `regaze` command. Results go to standard output, messages for a person to standard error.

Modules are imported when first used (`__init__.pyi` lists them), so that the help of a command loads neither
torch nor transformers, and so that signals are handled before anything else is loaded.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
