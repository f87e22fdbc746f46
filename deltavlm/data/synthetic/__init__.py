"""Made scenes with known truth, in the order they come about: layout -> paint -> nuisance -> Scene ->
facts -> words."""

from deltavlm.data.synthetic.scene import Scene, make_scene

__all__ = ["Scene", "make_scene"]
