"""Open3D's tensor pipelines by their own names: `from dlc_reg.t.pipelines import registration`."""

from dlc_reg.t.pipelines import registration

__all__ = ["registration"]
