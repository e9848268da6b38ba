"""Registration networks, each written from its paper, in one frame.

A network is one module here: a `RegistrationNetwork` under `@architecture("its name")`. Importing the package imports
them all, so that recipes and weights find it by that name.
"""

import importlib
import pkgutil

from dlc_reg.registration.learned.frame import ARCHITECTURES

__all__ = ["ARCHITECTURES"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
