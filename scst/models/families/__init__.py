"""What differs between model families, one small file per family; docs/families.md adds one step by step.

Rollout, scoring and both trainers are the same code for all of them. A family says how a prompt is written,
which tokens are image tokens, which positions and blocks they have, how image features are made, and what its
modules are called. It holds no weights and no state.
"""
