"""Synthetic scenes with ground truth: plan -> layout -> render -> imaging -> Scene -> facts -> phrases."""

from deltavlm.data.synthetic.scene import Scene, SceneOptions, make_scene

__all__ = ["Scene", "SceneOptions", "make_scene"]
