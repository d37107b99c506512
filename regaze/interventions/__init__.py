"""Interventions: what changes a model's answers. Each method is a module or, with helpers, a folder.

Classes are imported when first used; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
