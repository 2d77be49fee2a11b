"""The ways to make one step that ``step.py`` compares, each from pictures to the updated adapter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import TrainingArguments

from benchmarks.models import load_adapted
from benchmarks.naive import NaiveSCST, coco_reward
from benchmarks.stopwatch import Stopwatch, TimedMetrics
from benchmarks.trl_paligemma import build_trainer
from rewards.cider_d import CiderDReward
from rewards.mixture import RewardMixture
from rewards.registry import RewardEntry
from scst.data.collate import SCSTCollator
from scst.models.policy import Policy
from scst.rl.policy_loss import ScoringSettings
from scst.rl.sampler import Sampler
from scst.rl.trainer import SCSTTrainer
from scst.rollout.feature_cache import KeptFeatures
from scst.training.phase_meter import PhaseMeter
from scst.types import PromptBatch, Rollout, Sampling

PROMPT = "caption en"
LEARNING_RATE = 1e-3
"""Every step begins at the same adapter, so it need not be one to train with; the 5e-6 of the published run
would be lost in bfloat16, in which TRL keeps the adapter of a quantised model."""


class Arithmetic(TorchDispatchMode):
    """Floating-point operations of matrix products and convolutions that run inside, backward included.

    ``torch.utils.flop_counter.FlopCounterMode`` has the same formulas, but cannot look into a backward pass
    that starts another.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return result


@dataclass
class World:
    """What all ways share.

    Attributes:
        folder: of the checkpoint.
        processor: of the checkpoint; one for each way is not needed.
        rows: B rows with ``image``, ``references`` and ``image_id``.
        sampling: K and the forced length T.
        device: ``cpu`` or ``cuda``.
        quantization: ``none`` or ``nf4``.
        gradient_checkpointing: in the scoring pass.
        stopwatch: reads the phases.
        precision: of computation, and of weights that are not quantised.
    """

    folder: Path
    processor: Any
    rows: list[dict[str, Any]]
    sampling: Sampling
    device: str
    quantization: str
    gradient_checkpointing: bool
    stopwatch: Stopwatch
    precision: str

    def load(self) -> Any:
        """The model with the same adapter, a copy of its own: TRL changes the model that it is given."""
        model = load_adapted(self.folder, precision=self.precision, quantization=self.quantization)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model


@dataclass
class Work:
    """What a step did, to see that all ways did the same.

    Attributes:
        samples: tokens of every sampled caption.
        greedy: tokens of every greedy caption; none where the way needs none.
        greedy_ids: (B, T), or None.
        num_scored: captions whose gradient was computed.
    """

    samples: list[int]
    greedy: list[int] = field(default_factory=list)
    greedy_ids: torch.Tensor | None = None
    num_scored: int = 0


class Way:
    """One way to make a step, always from the same adapter.

    Args:
        title: for tables.
        model: a PEFT model with a trainable adapter.
        step: makes the step with an optimizer, and tells what it did.
        flushes_denormals: on the CPU, as our launch scripts set it and others do not.
        meter: time and memory of the phases, where the way measures them itself.
    """

    def __init__(
        self,
        title: str,
        model: Any,
        step: Callable[[torch.optim.Optimizer], Work],
        flushes_denormals: bool = False,
        meter: PhaseMeter | None = None,
    ):
        self.title, self.model, self.meter = title, model, meter
        self._step = step
        self._adapter = [p for p in model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._adapter]
        self._optimizer = torch.optim.AdamW(self._adapter, lr=LEARNING_RATE, weight_decay=0.0)
        self._flushes_denormals = flushes_denormals

    def reset(self) -> None:
        """Go back to the first adapter."""
        for parameter, start in zip(self._adapter, self._start, strict=True):
            parameter.data.copy_(start)

    def step(self) -> Work:
        """One step, from pictures to the updated adapter."""
        torch.set_flush_denormal(self._flushes_denormals)
        return self._step(self._optimizer)

    def check(self, work: Work, world: World) -> None:
        """All ways must have done the same, or their times mean nothing.

        Raises:
            RuntimeError: when captions have other lengths, were not scored, or the adapter did not change.
        """
        num_images, length = len(world.rows), world.sampling.max_new_tokens
        expected = num_images * world.sampling.num_samples
        if work.samples != [length] * expected or work.num_scored != expected:
            raise RuntimeError(
                f"{self.title}: expected {expected} captions of {length} tokens, all of them scored; got "
                f"{len(work.samples)} of {sorted(set(work.samples))} tokens, {work.num_scored} scored"
            )
        if work.greedy not in ([], [length] * num_images):
            raise RuntimeError(f"{self.title}: expected {num_images} greedy captions of {length} tokens")
        pairs = zip(self._adapter, self._start, strict=True)
        if not all(torch.any(p != start) for p, start in pairs):
            raise RuntimeError(
                f"{self.title}: a part of the adapter had no gradient: try more --samples or --tokens"
            )


def naive(world: World) -> Way:
    """:class:`benchmarks.naive.NaiveSCST`."""
    way = NaiveSCST(
        world.load(),
        world.processor,
        prompt=PROMPT,
        num_samples=world.sampling.num_samples,
        tokens=world.sampling.max_new_tokens,
        dtype=torch.bfloat16 if world.precision == "bf16" else None,
    )

    def step(optimizer: torch.optim.Optimizer) -> Work:
        done = way.step(world.rows, optimizer, world.stopwatch)
        lengths = [len(row) for row in done.sampled_ids]
        return Work(lengths, [len(row) for row in done.greedy_ids], done.greedy_ids, len(lengths))

    return Way("naive SCST", way.model, step)


def trl(kind: str, world: World) -> Way:
    """TRL's GRPO or RLOO (:mod:`benchmarks.trl_paligemma`), with our reward; it needs no greedy captions."""
    model = world.load()
    reward = CiderDReward()
    reward.setup({"references": [row["references"] for row in world.rows]})
    trainer = build_trainer(
        kind,
        model,
        world.processor,
        reward,
        world.rows,
        prompt=PROMPT,
        num_samples=world.sampling.num_samples,
        tokens=world.sampling.max_new_tokens,
        output_dir=world.folder / kind,
        use_cpu=world.device == "cpu",
        bf16=world.precision == "bf16",
        gradient_checkpointing=world.gradient_checkpointing,
    )
    trainer.current_gradient_accumulation_steps = 1
    made = _watch(trainer, world.stopwatch)
    batch = next(iter(trainer.get_train_dataloader()))

    def step(optimizer: torch.optim.Optimizer) -> Work:
        phases = world.stopwatch.phases
        with world.stopwatch("loss"):
            trainer.training_step(model, batch, None)
        phases["loss"] -= phases.pop("before the loss")
        optimizer.step()
        optimizer.zero_grad()
        return Work([len(ids) for ids in made], num_scored=len(made))

    return Way(f"TRL {kind.upper()}", model, step)


def _watch(trainer: Any, stopwatch: Stopwatch) -> list[list[int]]:
    """Put the parts of a TRL step under the stopwatch; returns a list that will hold its completions."""
    made: list[list[int]] = []

    def watched(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with stopwatch(phase):
                result = method(*args, **kwargs)
            if phase == "rollout":
                made[:] = result[1]
            return result

        return call

    phases = {
        "_generate_and_score_completions": "before the loss",
        "_generate": "rollout",
        "_calculate_rewards": "reward",
    }
    for name, phase in phases.items():
        setattr(trainer, name, watched(getattr(trainer, name), phase))
    return made


class VisionTwiceSampler(Sampler):
    """Scoring encodes the images again."""

    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        image_ids: Sequence[str],
        step: int,
        kept: KeptFeatures | None = None,
    ) -> Rollout:
        """The rollout without its image features."""
        return dataclasses.replace(super().sample(policy, prompts, image_ids, step), image_features=None)


class TwoGenerateSampler(Sampler):
    """Sampling calls ``generate`` twice."""

    def sample(
        self,
        policy: Policy,
        prompts: PromptBatch,
        image_ids: Sequence[str],
        step: int,
        kept: KeptFeatures | None = None,
    ) -> Rollout:
        """The rollout of :class:`benchmarks.naive.NaiveSCST`, without log probabilities and features."""
        inputs = self.encoder.generation_inputs(prompts)
        way = NaiveSCST(
            policy.model,
            self.encoder.processor,
            prompt=PROMPT,
            num_samples=self.sampling.num_samples,
            tokens=self.sampling.max_new_tokens,
        )
        greedy, sampled = way.generate(inputs)
        texts = self._texts(sampled)
        num_samples = self.sampling.num_samples
        sampled = sampled.unflatten(0, (len(prompts), num_samples))
        everything = torch.ones_like(sampled, dtype=torch.bool)
        return Rollout(
            prompts=prompts,
            completion_ids=sampled,
            completion_mask=everything,
            sampled_logprobs=torch.zeros_like(sampled, dtype=torch.float32),
            greedy_ids=greedy,
            greedy_mask=everything[:, 0],
            captions=[texts[i : i + num_samples] for i in range(0, len(texts), num_samples)],
            greedy_captions=self._texts(greedy),
            ended_by_eos=torch.zeros_like(everything[:, :, 0]),
            greedy_ended_by_eos=torch.zeros_like(everything[:, 0, 0]),
        )

    def _texts(self, ids: torch.Tensor) -> list[str]:
        return self.encoder.decode_captions(ids, torch.ones_like(ids, dtype=torch.bool))


@dataclass(frozen=True)
class Switch:
    """Our step with one optimisation off (or none).

    Attributes:
        scoring: how captions are scored.
        reward: an entry of ``rewards:`` in a recipe.
        sampler: its class.
        flushes_denormals: on the CPU.
    """

    scoring: ScoringSettings = field(default_factory=ScoringSettings)
    reward: RewardEntry = "cider_d"
    sampler: type[Sampler] = Sampler
    flushes_denormals: bool = True


SWITCHES: dict[str, Switch] = {
    "scoring: plain": Switch(ScoringSettings(layout="plain")),
    "head: all logits at once": Switch(ScoringSettings(head_chunk=0)),
    "images: encoded again to score": Switch(sampler=VisionTwiceSampler),
    "rollout: two generate calls": Switch(sampler=TwoGenerateSampler),
    "gradient: not through the prompt": Switch(ScoringSettings(prompt_gradient=False)),
    "denormal numbers: kept": Switch(flushes_denormals=False),
    "reward: pycocoevalcap": Switch(reward=coco_reward),
}
"""What differs -> how. All but the gradient, an approximation, turn an optimisation off. Merging duplicates
and leaving out zero advantages are not here: every caption of this benchmark differs from the others and has
an advantage, so they have nothing to save."""


def ours(world: World, model: Any, title: str = "ours", switch: Switch | None = None) -> Way:
    """Our trainer's step."""
    switch = switch or Switch()
    trainer = _our_trainer(world, model, switch)
    metrics = TimedMetrics(trainer.args.device, world.stopwatch)
    trainer.metrics = metrics
    trainer.policy_loss.skip_check()  # once per run it scores twice: no part of a step

    def step(optimizer: torch.optim.Optimizer) -> Work:
        batches = iter([trainer.data_collator(world.rows)])
        [batch], num_items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        model.train()
        trainer.training_step(model, batch, num_items)
        optimizer.step()
        optimizer.zero_grad()
        share = metrics.flush().get("scored_share", 1.0)
        rollout = trainer.last_step.rollout
        lengths = rollout.completion_mask.sum(-1).flatten().tolist()
        greedy = rollout.greedy_mask.sum(-1).tolist()
        return Work(lengths, greedy, rollout.greedy_ids, round(share * len(lengths)))

    return Way(title, model, step, switch.flushes_denormals, metrics.phases)


def _our_trainer(world: World, model: Any, switch: Switch) -> SCSTTrainer:
    rewards = RewardMixture([switch.reward])
    rewards.setup({name: [row[name] for row in world.rows] for name in ("references", "image_id")})
    trainer = SCSTTrainer(
        model,
        TrainingArguments(
            output_dir=str(world.folder / "ours"),
            use_cpu=world.device == "cpu",
            bf16=world.precision == "bf16",
            logging_steps=1,  # as in our recipes: a logged step scores one image under the SFT policy too
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=world.rows,
        data_collator=SCSTCollator(world.processor, PROMPT),
        processor=world.processor,
        sampling=world.sampling,
        rewards=rewards,
        scoring=switch.scoring,
    )
    keep = trainer.sampler.keep_prompt_cache
    trainer.sampler = switch.sampler(trainer.encoder, world.sampling, keep_prompt_cache=keep)
    return trainer
