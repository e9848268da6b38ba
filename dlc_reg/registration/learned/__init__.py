"""Registration networks, each written from its paper, in one frame."""

from dlc_reg.registration.learned.dcp import DCP
from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.registration.learned.pointnetlk import PointNetLK
from dlc_reg.registration.learned.prnet import PRNet
from dlc_reg.registration.learned.rpmnet import RPMNet
from dlc_reg.registration.learned.softicp import SoftICP

ARCHITECTURES: dict[str, type[RegistrationNetwork]] = {
    "pointnetlk": PointNetLK,
    "dcp": DCP,
    "rpmnet": RPMNet,
    "prnet": PRNet,
    "softicp": SoftICP,
}
"""By the name that recipes and weights use."""
