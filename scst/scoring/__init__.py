"""Log probabilities of captions under the policy, with gradients.

Layouts of the forward pass, and the language-model head a few positions at a time. The distribution itself is
in ``scst.rollout.distribution``, because sampling uses the same one. Losses are in ``scst.objective``.
"""
