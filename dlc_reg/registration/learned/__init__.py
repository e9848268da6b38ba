"""Registration networks, each written from its paper, in one frame."""

from dlc_reg.networks.arguments import recorded
from dlc_reg.registration.learned.dcp import DCP
from dlc_reg.registration.learned.frame import RegistrationNetwork
from dlc_reg.registration.learned.pointnetlk import PointNetLK
from dlc_reg.registration.learned.prnet import PRNet
from dlc_reg.registration.learned.ranked import RankedICP
from dlc_reg.registration.learned.rpmnet import RPMNet
from dlc_reg.registration.learned.softicp import SoftICP

ARCHITECTURES: dict[str, type[RegistrationNetwork]] = {
    "pointnetlk": recorded(PointNetLK),
    "dcp": recorded(DCP),
    "rpmnet": recorded(RPMNet),
    "prnet": recorded(PRNet),
    "softicp": recorded(SoftICP),
    "ranked": recorded(RankedICP),
}
"""By the name that recipes and weights use."""
