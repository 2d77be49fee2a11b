"""The objective as pure functions of tensors: advantages, policy-gradient loss, KL and entropy terms."""
