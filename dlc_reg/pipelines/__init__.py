"""Open3D's pipelines by their own names: `from dlc_reg.pipelines import registration`."""

from dlc_reg.pipelines import registration

__all__ = ["registration"]
