"""Open3D's tensor modules by their own names: `from dlc_reg.t.pipelines import registration`."""

from dlc_reg.t import pipelines

__all__ = ["pipelines"]
