"""The objective as pure functions of tensors: advantages, policy-gradient loss, KL and entropy terms.

Nothing here knows a model, a trainer or a recipe.
"""
