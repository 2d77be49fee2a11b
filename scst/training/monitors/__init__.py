"""What watches a run and raises an alarm: collapse of the policy, hacking of the reward.

Not here: what is logged at every step (``scst.training.step_metrics``).
"""
