"""Shapes, and the pairs of clouds that the literature's ModelNet40 protocols make of them.

    shapes = Shapes.load("modelnet40.npz").select(split="test", categories="unseen")
    pairs = PairDataset(shapes, "rpmnet-independent", seed=0)
    pair = pairs[0]        # .source, .target, .truth (T_target_source: p' = R p + t), .index of the shape
    loader = torch.utils.data.DataLoader(pairs, batch_size=32, num_workers=4, collate_fn=collate)

A protocol is data (`Protocol`), and one routine, `make_pair`, makes a pair of it. What follows each paper's public
loader, and what does not, is said in `table`.
"""

from dlc_reg.protocols.making import draw_motion, make_pair
from dlc_reg.protocols.pairs import Pair, PairBatch, PairDataset, ShapeTransform, collate, stack_ragged
from dlc_reg.protocols.shapes import Shapes
from dlc_reg.protocols.table import PROTOCOLS, Protocol, protocol

__all__ = [
    "PROTOCOLS",
    "Pair",
    "PairBatch",
    "PairDataset",
    "Protocol",
    "ShapeTransform",
    "Shapes",
    "collate",
    "draw_motion",
    "make_pair",
    "protocol",
    "stack_ragged",
]
