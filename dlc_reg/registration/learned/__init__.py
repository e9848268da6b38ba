"""Registration networks, each written from its paper, in one frame."""

from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.registration.learned.softicp import SoftICP

ARCHITECTURES: dict[str, type[RegistrationNetwork]] = {"softicp": SoftICP}
"""By the name that recipes and weights use."""
