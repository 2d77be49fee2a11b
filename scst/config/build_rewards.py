"""Builds the reward mixture from a recipe; needs no torch unless a reward does."""

from __future__ import annotations

from rewards.errors import RewardError
from rewards.mixture import RewardMixture
from rewards.registry import build_rewards
from scst.config.recipes import SCSTRecipe
from scst.errors import RecipeError


def build_reward(recipe: SCSTRecipe) -> RewardMixture:
    """Build the reward mixture. Its reward functions are not set up with training data yet.

    Raises:
        RecipeError: naming the reward that cannot be built.
    """
    try:
        mixture = RewardMixture(build_rewards(recipe.rewards))
    except RewardError as error:
        raise RecipeError(f"rewards: {error}") from error
    for reward in mixture.rewards:
        scorer = getattr(reward.function, "scorer", None)  # set here only when the recipe names a table
        table = getattr(scorer, "frequencies", None)
        if table is not None and table.split != recipe.train_split:
            raise RecipeError(
                f"rewards: the document frequencies of {reward.name!r} are of split {table.split!r}, but "
                f"the run trains on {recipe.train_split!r}: count it with launch/prepare.py, or give none"
            )
    return mixture
