"""Self-critical sequence training the usual way: what the fast step is measured against.

As published code and reports write it, after Rennie et al. 2017 (arXiv:1612.00563): ``generate`` once for the
greedy captions and once with ``num_return_sequences=K`` for the samples, pycocoevalcap's tokenizer and CIDEr
as the reward, then one forward pass over B * K whole sequences, the prompt and its image repeated for every
sample, with the logits of every position. It is correct (token types, distribution, mask), only not fast.

Where usual code is slower still, this is not: greedy and sampled captions are scored in one call of the
tokenizer, and ``log_softmax`` sees the caption positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from scst.models.policy import base_model
from scst.models.prompts import PromptEncoder, forbidden_token_ids

Timed = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a phase; what runs inside the context belongs to it."""


@dataclass(frozen=True)
class NaiveStep:
    """What one step did.

    Attributes:
        greedy_ids: (B, T) token ids.
        sampled_ids: (B * K, T) token ids, the samples of an image beside each other.
        advantages: (B * K,).
        loss: a number.
    """

    greedy_ids: torch.Tensor
    sampled_ids: torch.Tensor
    advantages: torch.Tensor
    loss: float


class NaiveSCST:
    """The usual step.

    Args:
        model: a PEFT model with a trainable adapter.
        processor: its processor.
        prompt: the instruction.
        num_samples: K.
        tokens: T, the length of every caption: it is forced, so that all ways do the same work.
        dtype: of autocast; None computes in the dtype of the weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        *,
        prompt: str,
        num_samples: int,
        tokens: int,
        dtype: torch.dtype | None = None,
    ):
        self.model = model
        self.processor = processor
        self.prompt = prompt
        self.num_samples = num_samples
        self.device = base_model(model).device
        self.dtype = dtype
        vocabulary = model.config.get_text_config().vocab_size
        self.generation = {
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "suppress_tokens": forbidden_token_ids(processor, vocabulary),
        }

    def step(
        self,
        rows: Sequence[dict[str, Any]],
        optimizer: torch.optim.Optimizer,
        timed: Timed = lambda phase: nullcontext(),
    ) -> NaiveStep:
        """Sample, reward, score, and update the adapter.

        Args:
            rows: B rows with ``image`` and ``references``.
            optimizer: of the adapter's weights.
            timed: measures the phases ``rollout``, ``reward`` and ``loss``.
        """
        prompts = [self.prompt] * len(rows)
        inputs = PromptEncoder.of(self.processor).encode_prompts([row["image"] for row in rows], prompts)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with timed("rollout"):
            greedy, sampled = self.generate(inputs)
        with timed("reward"):
            advantages = self.advantages(greedy, sampled, [row["references"] for row in rows])
        with timed("loss"):
            logprobs = self.logprobs(inputs, sampled)
            loss = -(advantages.unsqueeze(1) * logprobs).sum(1).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return NaiveStep(greedy, sampled, advantages, loss.item())

    def generate(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy (B, T) and sampled (B * K, T) token ids, from two calls."""
        self.model.eval()
        plain = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        with torch.no_grad(), self._autocast():
            greedy = self.model.generate(**inputs, **self.generation, do_sample=False)
            sampled = self.model.generate(
                **inputs, **self.generation, **plain, num_return_sequences=self.num_samples
            )
        self.model.train()
        start = inputs["input_ids"].shape[1]
        return greedy[:, start:], sampled[:, start:]

    def advantages(
        self, greedy: torch.Tensor, sampled: torch.Tensor, references: list[list[str]]
    ) -> torch.Tensor:
        """(B * K,) CIDEr of each sample minus that of its image's greedy caption."""
        ids = torch.cat([sampled, greedy])
        captions = PromptEncoder.of(self.processor).decode_captions(
            ids, torch.ones_like(ids, dtype=torch.bool)
        )
        repeated = [group for group in references for _ in range(self.num_samples)]
        rewards = torch.tensor(coco_cider(captions, repeated + references), dtype=torch.float32)
        of_samples, of_greedy = rewards.split([len(sampled), len(greedy)])
        return (of_samples - of_greedy.repeat_interleave(self.num_samples)).to(self.device)

    def logprobs(self, inputs: dict[str, torch.Tensor], sampled: torch.Tensor) -> torch.Tensor:
        """(B * K, T) log probabilities of the samples, with gradients."""
        repeated = {
            name: tensor.repeat_interleave(self.num_samples, dim=0) for name, tensor in inputs.items()
        }
        ones = torch.ones_like(sampled)
        start = repeated["input_ids"].shape[1]
        with self._autocast():
            logits = self.model(
                input_ids=torch.cat([repeated["input_ids"], sampled], 1),
                attention_mask=torch.cat([repeated["attention_mask"], ones], 1),
                token_type_ids=torch.cat([repeated["token_type_ids"], ones], 1),
                pixel_values=repeated["pixel_values"],
            ).logits
        suppressed = [*self.generation["suppress_tokens"], self.processor.tokenizer.eos_token_id]
        logits = logits[:, start - 1 : -1].float().index_fill(-1, ones.new_tensor(suppressed), -torch.inf)
        return logits.log_softmax(-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def coco_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """pycocoevalcap's CIDEr, document frequencies counted over the batch.

    Two runs of its Java tokenizer, for references and captions, and its scorer, at every step. Batches are
    too small for such frequencies (two samples often change places), which costs accuracy, not time.
    """
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    wanted = {i: [{"caption": text} for text in group] for i, group in enumerate(references)}
    given = {i: [{"caption": caption}] for i, caption in enumerate(captions)}
    return list(Cider().compute_score(tokenizer.tokenize(wanted), tokenizer.tokenize(given))[1])


def coco_reward(
    completions: Sequence[str], references: Sequence[Sequence[str]], **columns: Any
) -> list[float]:
    """:func:`coco_cider` as a reward of a recipe (``import_path: benchmarks.naive:coco_reward``)."""
    return coco_cider(completions, references)
