"""The errors of rewards and caption scorers."""


class RewardError(Exception):
    """A reward or scorer cannot be built, or gave a wrong answer; the message says what to do."""


class NamedRewardError(RewardError):
    """Its message names the reward already, so that callers need not add the name."""
