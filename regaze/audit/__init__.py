"""Whether methods do more than their own controls, tuned on one half of the scenes and tested on the other.

Names are imported when first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
