"""TRL's GRPOTrainer and RLOOTrainer made to run correctly on PaliGemma (trl 1.16).

What stops them, and what this module does about it:

1. PaliGemma's processor has no chat template, and TRL takes images in conversations only:
   :data:`CHAT_TEMPLATE` writes the image placeholder and the instruction, which the processor completes to
   PaliGemma's own prompt format. Rows need a column ``image``.
2. TRL continues ``token_type_ids`` with zeros over the completion (huggingface/trl pull request 4148). Type 0
   is the bidirectional prefix of a prefix language model, so every scored token sees the whole completion,
   itself included: the log probabilities and their gradients are of another model than the one that sampled.
   :class:`PrefixLMMixin` sets type 1 there.
3. The processor always returns ``labels``, which TRL passes on to a function that does not know them
   (RLOOTrainer always; GRPOTrainer with a KL term or with several updates per rollout). They are dropped.
4. The policy can sample ``<loc0000>`` and the like; ``generation_kwargs`` suppresses them.

What remains: scores are of the whole softmax, with the suppressed tokens in it, and positions are those of
prompts that have equal lengths (one instruction for all images, as here). On the CPU the fused head of
trl 1.16 computes every position of the sequence, on CUDA those of the completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from scst.models.prompts import forbidden_token_ids

CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


class PrefixLMMixin:
    """Completions are causal, and the processor's ``labels`` go no further. See the module's docstring."""

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        token_type_ids = token_type_ids.clone()
        token_type_ids[:, -logits_to_keep:] = 1
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, token_type_ids=token_type_ids, **kwargs
        )


class PaliGemmaGRPOTrainer(PrefixLMMixin, GRPOTrainer):
    """GRPO (Shao et al. 2024, arXiv:2402.03300) as TRL has it."""


class PaliGemmaRLOOTrainer(PrefixLMMixin, RLOOTrainer):
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740) as TRL has it: scores twice, once for old logprobs."""


TRAINERS: dict[str, tuple[type, type]] = {
    "grpo": (PaliGemmaGRPOTrainer, GRPOConfig),
    "rloo": (PaliGemmaRLOOTrainer, RLOOConfig),
}


def build_trainer(
    kind: str,
    model: torch.nn.Module,
    processor: Any,
    reward: Callable[..., Sequence[float]],
    rows: Sequence[dict[str, Any]],
    *,
    prompt: str,
    num_samples: int,
    tokens: int,
    output_dir: str | Path,
    min_tokens: int | None = None,
    **settings: Any,
) -> Any:
    """A trainer whose step is one update on K completions of all rows: no KL, one iteration, no vLLM.

    Args:
        kind: a name in :data:`TRAINERS`.
        model: a PEFT model with a trainable adapter.
        processor: its processor; gets a chat template.
        reward: a reward function, already set up.
        rows: B rows with ``image``, ``references`` and ``image_id``.
        prompt: the instruction.
        num_samples: K.
        tokens: length limit of completions.
        output_dir: nothing is written there.
        min_tokens: shortest length; default: ``tokens``, all completions have the same.
        settings: more arguments of the trainer's configuration.
    """
    trainer_class, config_class = TRAINERS[kind]
    processor.chat_template = CHAT_TEMPLATE
    vocabulary = model.config.get_text_config().vocab_size
    config = config_class(
        output_dir=str(output_dir),
        per_device_train_batch_size=len(rows) * num_samples,
        num_generations=num_samples,
        max_completion_length=tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.0,
        num_iterations=1,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        generation_kwargs={
            "min_new_tokens": tokens if min_tokens is None else min_tokens,
            "suppress_tokens": forbidden_token_ids(processor, vocabulary),
        },
        **({"bf16": False, "gradient_checkpointing": False} | settings),
    )
    message = [{"role": "user", "content": prompt}]
    dataset = datasets.Dataset.from_list([{**row, "prompt": message} for row in rows])
    return trainer_class(model, reward, args=config, train_dataset=dataset, processing_class=processor)
