"""Point cloud registration that says when it can be trusted, and Deep Loss Convexification."""

from dlc_reg import manifold, ops
from dlc_reg.alignment import AlignmentResult, align_images
from dlc_reg.api import Prepared, RegistrationResult, Verdict, prepare, register
from dlc_reg.convexify import ConvexifiedLoss, basin_radius, landscape, star_violation
from dlc_reg.errors import InputError
from dlc_reg.geometry import PointCloud
from dlc_reg.io import sample_pair
from dlc_reg.iterate import Solution, Status, Termination, iterate
from dlc_reg.many import PairResult, register_many
from dlc_reg.multiway import MultiwayEdge, MultiwayResult, register_multiway
from dlc_reg.registration.learned.weights import load_model

__version__ = "0.1.0"

__all__ = [
    "AlignmentResult",
    "ConvexifiedLoss",
    "InputError",
    "MultiwayEdge",
    "MultiwayResult",
    "PairResult",
    "PointCloud",
    "Prepared",
    "RegistrationResult",
    "Solution",
    "Status",
    "Termination",
    "Verdict",
    "align_images",
    "basin_radius",
    "iterate",
    "landscape",
    "load_model",
    "manifold",
    "ops",
    "prepare",
    "register",
    "register_many",
    "register_multiway",
    "sample_pair",
    "star_violation",
]
