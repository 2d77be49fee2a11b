"""Loading the policy, what of it is trainable, and the prompt format and masks of the PaliGemma family."""
