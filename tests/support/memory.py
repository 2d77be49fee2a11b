"""Memory that runs out at a chosen place of the step, as it does on a GPU."""

from __future__ import annotations

from collections import Counter

import torch

from scst.rl import policy_loss, sampler

ATTEMPTS = Counter()


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.76 GiB"


def run_out(images: int, limit: int, place: str) -> None:
    """Fail as a card does when more images than the limit are worked on."""
    ATTEMPTS[place, images] += 1
    if images > limit:
        raise torch.OutOfMemoryError(CUDA)


def limited_rollout(original, limit):
    def rollout(policy, processor, prompts, *args, **kwargs):
        run_out(len(prompts), limit, "rollout")
        return original(policy, processor, prompts, *args, **kwargs)

    return rollout


def limited_score(original, limit):
    def score(policy, prompts, *args, **kwargs):
        scores = original(policy, prompts, *args, **kwargs)
        run_out(len(prompts), limit, "scoring")
        return scores

    return score


def limited_backward(original, limit):
    """Fails once the last layers' gradients were added, as it happens: the first layers are missing."""

    def score(policy, prompts, *args, **kwargs):
        scores = original(policy, prompts, *args, **kwargs)
        if not torch.is_grad_enabled():
            return scores
        first = next(p for p in policy.inner.parameters() if p.requires_grad)
        hook = first.register_hook(lambda gradient: fail(len(prompts)))
        HOOKS.append(hook)
        return scores

    def fail(images):
        while HOOKS:
            HOOKS.pop().remove()
        run_out(images, limit, "backward")

    return score


HOOKS = []


PLACES = {
    "rollout": (sampler, "rollout", limited_rollout),
    "scoring": (policy_loss, "score", limited_score),
    "backward": (policy_loss, "score", limited_backward),
}


def make_scarce(place: str, limit: int, patch=setattr) -> None:
    """From now on no more images than the limit fit, in one place of the step."""
    module, name, limited = PLACES[place]
    patch(module, name, limited(getattr(module, name), limit))
