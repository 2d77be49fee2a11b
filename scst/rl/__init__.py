"""Stage 2: self-critical sequence training, as a trainer and its parts: sampler, rewarder, policy loss.

Here: what only this stage has. Not here: how captions are decoded (``scst.rollout``) and scored
(``scst.scoring``), the formulas of advantages and losses (``scst.objective``), and reward functions
(``rewards``).
"""
