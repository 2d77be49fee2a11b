"""The proof that the gradient is the right one, by enumeration.

Three words and ``<eos>``, captions of at most three tokens: 39 captions, so that the expected reward and its
gradient are finite sums. Two policies stand in for the real one: a table of logits, one row per prefix, and a
tiny PaliGemma with a LoRA on one projection that goes through the rollout and the scoring of training. Both
hold one copy of their parameters per image, so that one backward pass gives the gradient estimate of every
image, with its spread.

An estimator passes when the mean of its estimates lies where sampling noise alone would put it; wrong
estimators are held against the same ruler and must fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from scst.models.policy import Policy
from scst.models.prompts import PromptEncoder
from scst.objective.advantages import compute_advantages
from scst.objective.losses import importance_ratios, kl_penalty, policy_gradient_loss
from scst.rollout import distribution
from scst.rollout.decode import rollout
from scst.scoring.score_captions import score
from scst.types import PromptBatch, Sampling
from tests.support.tiny import build_model, build_processor, noise_images

PAD, EOS = 0, 1
LENGTH = 3
Caption = tuple[int, ...]


def all_captions(words: list[int]) -> list[Caption]:
    """Captions that end with <eos> within three tokens, and those cut by the limit; none is empty."""
    ended = [(*c, EOS) for n in range(1, LENGTH) for c in itertools.product(words, repeat=n)]
    return ended + list(itertools.product(words, repeat=LENGTH))


def as_ids(captions: list[Caption]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (C, T)."""
    ids = torch.tensor([[*c, *[PAD] * (LENGTH - len(c))] for c in captions])
    return ids, torch.tensor([[i < len(c) for i in range(LENGTH)] for c in captions])


@dataclass
class Draws:
    """Numbers of the captions drawn for N images: sampled (N, K) and greedy (N,)."""

    sampled: torch.Tensor
    greedy: torch.Tensor


class TabularPolicy:
    """Logits per prefix; ids 2, 3 and 4 are words. Float64."""

    def __init__(self, seed: int = 0):
        self.captions = all_captions([2, 3, 4])
        prefixes = [()] + [c for n in (1, 2) for c in itertools.product([2, 3, 4], repeat=n)]
        self.rows = {prefix: row for row, prefix in enumerate(prefixes)}
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(len(prefixes), 5, generator=generator, dtype=torch.float64)
        self.forbidden = torch.arange(5) == PAD

    def draw(self, num_images: int, sampling: Sampling, seed: int = 0) -> Draws:
        names = [str(i) for i in range(num_images)]
        uniforms = distribution.rollout_uniforms(
            names, seed=seed, step=0, num_samples=sampling.num_samples, length=LENGTH
        )
        sampled = self._decode(sampling, uniforms.flatten(0, 1)).view(num_images, -1)
        return Draws(sampled, self._decode(sampling, None).expand(num_images))

    def logprobs(self, numbers: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K, T) logprobs of captions by number, and the leaf (N, P) that they are differentiable in."""
        leaf = self.table.expand(len(numbers), -1, -1).clone().requires_grad_()
        ids, mask = (tensor[numbers] for tensor in as_ids(self.captions))
        prefix_rows = torch.tensor([[self.rows.get(c[:t], 0) for t in range(LENGTH)] for c in self.captions])
        images = torch.arange(len(numbers)).view(-1, 1, 1)
        logits = self._shaped(leaf[images, prefix_rows[numbers]], sampling, ids)
        return distribution.token_logprobs(logits, ids.clamp(min=1)).masked_fill(~mask, 0.0), leaf

    def _decode(self, sampling: Sampling, uniforms: torch.Tensor | None) -> torch.Tensor:
        """Numbers of the captions drawn with ``uniforms`` (N, T); the greedy one without."""
        count = 1 if uniforms is None else len(uniforms)
        prefixes: list[Caption] = [()] * count
        for step in range(LENGTH):
            rows = torch.tensor([self.rows.get(prefix, 0) for prefix in prefixes])
            logits = self._shaped(self.table[rows].unsqueeze(1).expand(-1, LENGTH, -1), sampling)[:, step]
            tokens = logits.argmax(-1) if uniforms is None else distribution.draw(logits, uniforms[:, step])
            prefixes = [
                prefix if prefix[-1:] == (EOS,) else (*prefix, token)
                for prefix, token in zip(prefixes, tokens.tolist(), strict=True)
            ]
        number = {caption: i for i, caption in enumerate(self.captions)}
        return torch.tensor([number[prefix] for prefix in prefixes])

    def _shaped(
        self, logits: torch.Tensor, sampling: Sampling, keep_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        return distribution.policy_logits(
            logits,
            positions=torch.arange(LENGTH).expand(logits.shape[:-1]),
            sampling=sampling,
            forbidden=self.forbidden,
            eos_token_id=EOS,
            keep_ids=keep_ids,
        )


class TinyPaliGemma:
    """The real rollout and scoring; a rank-2 LoRA on a value projection, A shared, B one per image."""

    def __init__(self):
        processor = build_processor(image_size=16)
        model = build_model(processor, image_size=16, layers=1, vocab_size=600).requires_grad_(False)
        words = processor.tokenizer.convert_tokens_to_ids(["▁trees", "▁road", "▁river"])
        self.captions = all_captions(words)
        forbidden = torch.ones(600, dtype=torch.bool)
        forbidden[[*words, EOS]] = False
        self.policy = Policy(model, forbidden, EOS, PAD)
        self.processor = processor
        self.picture = PromptEncoder.of(processor).prompt_batch(noise_images(1, size=16), ["caption en"])
        self.features = self.policy.image_features(self.picture)
        forward = model.lm_head.forward
        model.lm_head.forward = lambda states: 6.0 * forward(states)  # scoring calls it past all hooks
        projection = model.model.language_model.layers[0].self_attn.v_proj
        self.lora_a = torch.randn(projection.in_features, 2, generator=torch.Generator().manual_seed(3))
        self.lora_b: torch.Tensor | None = None
        self.width = projection.out_features
        projection.register_forward_hook(self._add_lora)

    def draw(self, num_images: int, sampling: Sampling, seed: int = 0) -> Draws:
        number = {caption: i for i, caption in enumerate(self.captions)}

        def numbers(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            rows = zip(ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1]), strict=True)
            return torch.tensor([number[tuple(r[keep].tolist())] for r, keep in rows]).view(ids.shape[:-1])

        parts = []
        for start in range(0, num_images, 512):
            names = [str(i) for i in range(start, min(start + 512, num_images))]
            uniforms = distribution.rollout_uniforms(
                names, seed=seed, step=0, num_samples=sampling.num_samples, length=LENGTH
            )
            result = rollout(self.policy, self.processor, self._prompts(len(names)), sampling, uniforms)
            sampled = numbers(result.completion_ids, result.completion_mask)
            parts.append((sampled, numbers(result.greedy_ids, result.greedy_mask)))
        sampled, greedy = zip(*parts, strict=True)
        return Draws(torch.cat(sampled), torch.cat(greedy))

    def logprobs(self, numbers: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = (tensor[numbers] for tensor in as_ids(self.captions))
        leaf = torch.zeros(len(numbers), 2, self.width, requires_grad=True)
        self.lora_b = leaf
        features = list(self.features) * len(numbers)
        scores = score(self.policy, self._prompts(len(numbers)), ids, mask, sampling, image_features=features)
        self.lora_b = None
        return scores.logprobs, leaf

    def _prompts(self, count: int) -> PromptBatch:
        return self.picture.select(torch.zeros(count, dtype=torch.long))

    def _add_lora(self, module, inputs, output):
        return output if self.lora_b is None else output + inputs[0] @ self.lora_a @ self.lora_b


PLAIN = Sampling(num_samples=2, max_new_tokens=LENGTH)


@pytest.fixture(scope="module", params=["table", "paligemma"])
def world(request):
    """A policy with a number of images that is enough to tell a right estimator from a wrong one."""
    return (TabularPolicy(), 20_000) if request.param == "table" else (TinyPaliGemma(), 3_072)


def reward_table(seed: int = 5) -> torch.Tensor:
    """(C,) arbitrary rewards, positive as CIDEr-D is."""
    return 1.0 + 2.0 * torch.rand(39, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_gradient(policy, sampling: Sampling, value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """(P,) gradient of sum p(c) value(log p(c)) over all captions; ``value`` gets (C,) log probabilities."""
    logprobs, leaf = policy.logprobs(torch.arange(39).unsqueeze(0), sampling)
    caption_logprobs = logprobs[0].sum(-1)
    torch.testing.assert_close(caption_logprobs.exp().sum().item(), 1.0, rtol=0, atol=1e-5)
    (caption_logprobs.exp() * value(caption_logprobs)).sum().backward()
    return leaf.grad.flatten().double()


def caption_gradients(policy, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (C,) and gradients of log p(c) (C, P) of all captions."""
    logprobs, leaf = policy.logprobs(torch.arange(39).unsqueeze(1), sampling)
    logprobs.sum().backward()
    return logprobs.detach().sum((1, 2)).exp().double(), leaf.grad.flatten(1).double()


def estimates(
    policy,
    draws: Draws,
    sampling: Sampling,
    advantages: torch.Tensor,
    loss: Callable[..., torch.Tensor] = policy_gradient_loss,
) -> torch.Tensor:
    """(N, P) gradient estimate of every image: minus the gradient of its mean loss over K."""
    mask = as_ids(policy.captions)[1]
    parts = []
    for rows in torch.arange(len(draws.sampled)).split(512):
        logprobs, leaf = policy.logprobs(draws.sampled[rows], sampling)
        loss(logprobs, mask[draws.sampled[rows]], advantages[rows]).mean(1).sum().backward()
        parts.append(-leaf.grad.flatten(1).double())
    return torch.cat(parts)


def advantages_of(baseline: str, draws: Draws, rewards: torch.Tensor) -> torch.Tensor:
    return compute_advantages(baseline, rewards[draws.sampled], rewards[draws.greedy])


def agrees(sample: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether the mean of ``sample`` (N, P) lies within sampling noise of ``expected`` (P,).

    Two demands. Every coordinate is within 4 standard errors. And Hotelling's statistic
    N d' S^-1 d, with d the difference of means and S the covariance (on the directions that vary), which is
    chi-square distributed with rank(S) degrees of freedom, is within 4 standard deviations of its mean.
    """
    count = len(sample)
    difference = sample.mean(0) - expected
    tiny = 1e-6 * expected.abs().max()
    if (difference.abs() > 4 * sample.std(0) / count**0.5 + tiny).any():
        return False
    values, directions = torch.linalg.eigh(torch.cov(sample.T))
    kept = values > 1e-6 * values.max()
    statistic = (count * (directions[:, kept].T @ difference).square() / values[kept]).sum()
    freedom = kept.sum()
    return bool((statistic - freedom).abs() <= 4 * (2 * freedom) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("baseline", "num_samples"), [("greedy", 1), ("greedy", 3), ("leave_one_out", 2)])
def test_expected_gradient_is_that_of_the_expected_reward(world, baseline, num_samples):
    policy, num_images = world
    sampling = Sampling(num_samples=num_samples, max_new_tokens=LENGTH)
    rewards = reward_table()
    expected = exact_gradient(policy, sampling, lambda _: rewards)
    draws = policy.draw(num_images, sampling)
    assert agrees(estimates(policy, draws, sampling, advantages_of(baseline, draws, rewards)), expected)


def test_exact_gradient_equals_the_score_function_identity(world):
    """grad E[r] = E[r grad log p]: holds the two ways of enumerating against each other."""
    policy, _ = world
    rewards = reward_table()
    probabilities, gradients = caption_gradients(policy, PLAIN)
    expected = exact_gradient(policy, PLAIN, lambda _: rewards)
    by_identity = (probabilities * rewards) @ gradients
    torch.testing.assert_close(by_identity, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [2, 3])
def test_group_has_the_expectation_that_enumeration_gives_it(num_samples):
    """Its expectation is not the gradient of the expected reward, but it is known: a sum over K-tuples."""
    policy, num_images = TabularPolicy(), 20_000
    sampling = Sampling(num_samples=num_samples, max_new_tokens=LENGTH)
    rewards = reward_table()
    probabilities, gradients = caption_gradients(policy, sampling)
    tuples = torch.cartesian_prod(*[torch.arange(39)] * num_samples)
    weights = probabilities[tuples].prod(1, keepdim=True) / num_samples
    advantages = compute_advantages("group", rewards[tuples], torch.zeros(len(tuples)))
    expected = sum((weights * advantages)[:, k] @ gradients[tuples[:, k]] for k in range(num_samples))

    draws = policy.draw(num_images, sampling)
    sample = estimates(policy, draws, sampling, advantages_of("group", draws, rewards))
    assert agrees(sample, expected)
    assert not agrees(sample, exact_gradient(policy, sampling, lambda _: rewards))


def test_the_mean_of_all_samples_times_k_over_k_minus_1_is_leave_one_out():
    rewards = torch.rand(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = rewards - rewards.mean(1, keepdim=True)
    others = (rewards.sum(1, keepdim=True) - rewards) / 4
    advantages = compute_advantages("leave_one_out", rewards, torch.zeros(64))
    torch.testing.assert_close(advantages, rewards - others)
    torch.testing.assert_close(advantages, 5 / 4 * centred)


def token_mean_loss(logprobs, mask, advantages):
    return policy_gradient_loss(logprobs, mask, advantages) / mask.sum(-1)


@pytest.mark.slow
def test_wrong_estimators_fail(world):
    """The ruler can tell: each of these is in some public implementation."""
    policy, num_images = world
    rewards = reward_table()
    expected = exact_gradient(policy, PLAIN, lambda _: rewards)
    draws = policy.draw(num_images, PLAIN)
    sampled = rewards[draws.sampled]
    right = advantages_of("leave_one_out", draws, rewards)
    assert agrees(estimates(policy, draws, PLAIN, right), expected)
    wrong = {
        "mean over the samples, itself included": estimates(policy, draws, PLAIN, right / 2),
        "another sign": estimates(policy, draws, PLAIN, -right),
        "mean over tokens": estimates(policy, draws, PLAIN, right, loss=token_mean_loss),
        "best of the samples as baseline": estimates(
            policy, draws, PLAIN, sampled - sampled.max(1, keepdim=True).values
        ),
    }
    assert [name for name, sample in wrong.items() if agrees(sample, expected)] == []


@pytest.mark.slow
def test_scoring_must_use_the_temperature_of_sampling(world):
    policy, num_images = world
    rewards = reward_table()
    warm = Sampling(num_samples=2, max_new_tokens=LENGTH, temperature=1.3)
    draws = policy.draw(num_images, warm)
    advantages = advantages_of("leave_one_out", draws, rewards)
    assert agrees(estimates(policy, draws, warm, advantages), exact_gradient(policy, warm, lambda _: rewards))
    scored_at_1 = estimates(policy, draws, PLAIN, advantages)
    assert not agrees(scored_at_1, exact_gradient(policy, PLAIN, lambda _: rewards))
    assert not agrees(scored_at_1, exact_gradient(policy, warm, lambda _: rewards))


@pytest.mark.slow
@pytest.mark.parametrize(("baseline", "num_samples"), [("greedy", 1), ("leave_one_out", 2)])
def test_kl_penalty_adds_the_gradient_of_minus_the_divergence(baseline, num_samples):
    """The objective E[r] - beta KL(policy || ref_policy), enumerated: sum p (r - beta (log p - log q))."""
    policy, ref_policy, beta, num_images = TabularPolicy(), TabularPolicy(seed=1), 0.4, 20_000
    sampling = Sampling(num_samples=num_samples, max_new_tokens=LENGTH)
    rewards = reward_table()
    log_q = ref_policy.logprobs(torch.arange(39).unsqueeze(0), sampling)[0][0].sum(-1).detach()
    expected = exact_gradient(policy, sampling, lambda log_p: rewards - beta * (log_p.detach() - log_q))

    draws = policy.draw(num_images, sampling)
    mask = as_ids(policy.captions)[1][draws.sampled]
    logprobs, ref_logprobs = (p.logprobs(draws.sampled, sampling)[0] for p in (policy, ref_policy))
    penalty = kl_penalty(logprobs, ref_logprobs, mask)
    advantages = advantages_of(baseline, draws, rewards)
    assert agrees(estimates(policy, draws, sampling, advantages - beta * penalty), expected)
    assert not agrees(estimates(policy, draws, sampling, advantages), expected), "the penalty had no effect"


def test_importance_ratios_make_captions_of_an_older_policy_those_of_the_policy():
    """Captions, baseline and rewards of the older policy; the gradient is the newer one's all the same."""
    policy, older, num_images = TabularPolicy(), TabularPolicy(), 20_000
    older.table = older.table + 0.3 * TabularPolicy(seed=1).table
    rewards = reward_table()
    expected = exact_gradient(policy, PLAIN, lambda _: rewards)
    draws = older.draw(num_images, PLAIN)
    mask = as_ids(policy.captions)[1][draws.sampled]
    logprobs, sampled_logprobs = (p.logprobs(draws.sampled, PLAIN)[0] for p in (policy, older))
    ratios = importance_ratios(logprobs, sampled_logprobs, mask)
    advantages = advantages_of("leave_one_out", draws, rewards)
    assert not agrees(estimates(policy, draws, PLAIN, advantages), expected), "it would not have mattered"
    # E[ratio_k (r_k - r_j)]: the other sample is the older policy's, and its mean is a constant baseline
    assert agrees(estimates(policy, draws, PLAIN, ratios * advantages), expected)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_baseline_lowers_the_variance(world, baseline):
    policy, _ = world
    rewards = reward_table()
    draws = policy.draw(2048, PLAIN)
    without = estimates(policy, draws, PLAIN, rewards[draws.sampled]).var(0).sum()
    with_baseline = estimates(policy, draws, PLAIN, advantages_of(baseline, draws, rewards)).var(0).sum()
    assert with_baseline < 0.5 * without


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [{}, {"temperature": 1.3}, {"temperature": 0.7, "top_k": 2}, {"top_p": 0.7}, {"min_new_tokens": 3}],
    ids=str,
)
def test_draws_follow_the_sampling_distribution(world, shape):
    """Chi-square of caption counts against probabilities worked out here, token by token, from plain ones."""
    policy, num_images = world
    sampling = Sampling(num_samples=2, max_new_tokens=LENGTH, **shape)
    probabilities = caption_probabilities(policy, sampling)
    draws = policy.draw(num_images, sampling, seed=1).sampled.flatten()
    counts = torch.bincount(draws, minlength=39).double()
    assert (counts[probabilities == 0] == 0).all()
    possible = probabilities > 0
    expected, counts = probabilities[possible] * len(draws), counts[possible]
    rare = expected < 10  # pooled: chi-square wants counts that are nearly normal
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    counts = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    statistic = ((counts - expected).square() / expected.clamp(min=1)).sum()
    freedom = len(expected) - 1
    assert statistic <= freedom + 4 * (2 * freedom) ** 0.5


def caption_probabilities(policy, sampling: Sampling) -> torch.Tensor:
    """(C,) probabilities of captions: temperature, top-k, top-p and minimal length done naively."""
    logprobs = policy.logprobs(torch.arange(39).unsqueeze(0), PLAIN)[0][0].detach()
    plain = {
        (c[:t], c[t]): logprobs[i, t].exp().item()
        for i, c in enumerate(policy.captions)
        for t in range(len(c))
    }
    result = [1.0] * 39
    for i, caption in enumerate(policy.captions):
        for t, token in enumerate(caption):
            options = {tok: p for (prefix, tok), p in plain.items() if prefix == caption[:t]}
            if t < sampling.min_new_tokens:
                options.pop(EOS, None)
            options = {tok: p ** (1 / sampling.temperature) for tok, p in options.items()}
            ranked = sorted(options, key=options.get, reverse=True)
            kept, mass, total = [], 0.0, sum(options.values())
            for tok in ranked[: sampling.top_k or None]:
                if mass < sampling.top_p * total:
                    kept.append(tok)
                mass += options[tok]
            result[i] *= options[token] / sum(options[tok] for tok in kept) if token in kept else 0.0
    return torch.tensor(result, dtype=torch.float64)
