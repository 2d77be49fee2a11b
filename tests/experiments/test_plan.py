"""From a matrix recipe to its runs: grids, which key reaches which stage, fingerprints, what is refused."""

from __future__ import annotations

import pytest

from scst.config.build_matrix import RecipeKeys, plan_of
from scst.config.reader import build_recipe, read_recipe_file
from scst.errors import RecipeError
from scst.experiments.matrix_models import read_models
from tests.support.matrices import SCST, SFT
from tests.support.paths import ROOT

MATRICES = sorted((ROOT / "recipes").rglob("*matrix.yaml"))


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_matrix_recipe_has_a_plan(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = plan_of(build_recipe("matrix", read_recipe_file(path)))
    assert plan.cells
    assert all(run.keys["model_name_or_path"] for run in (*plan.trainings, *plan.evaluations))


def named_plan(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    return plan_of(
        build_recipe("matrix", read_recipe_file(ROOT / "recipes" / "experiments" / f"{name}-matrix.yaml"))
    )


def test_the_twelve_runs_are_twelve(monkeypatch):
    plan = named_plan("twelve-runs", monkeypatch)
    assert (len(plan.trainings), len(plan.evaluations), len(plan.cells)) == (2, 12, 12)
    assert {cell.prompt for cell in plan.cells} == {
        "Describe this image in detail:",
        "Describe this image:",
        "What do you see in this image:",
    }
    assert {(cell.decoding, cell.max_new_tokens) for cell in plan.cells} == {
        ("greedy-16", 16),
        ("beam4-sample-16", 16),
    }
    assert all(run.keys["prompt"] == "Describe this image in detail:" for run in plan.trainings)


def test_the_rank_ablation_is_the_published_grid(monkeypatch):
    plan = named_plan("ranks", monkeypatch)
    grid = {tuple(run.keys[k] for k in ("lora_rank", "lora_alpha", "lora_dropout")) for run in plan.trainings}
    assert grid == {(r, float(a), d) for r in (2, 4, 8) for a in (4, 16, 32) for d in (0.0, 0.1)}


def test_baselines_share_one_supervised_adapter(monkeypatch):
    plan = named_plan("baselines", monkeypatch)
    assert [run.stage for run in plan.trainings].count("sft") == 1
    assert [run.stage for run in plan.trainings].count("scst") == 9
    supervised = plan.trainings[0]
    assert all(run.keys["adapter"] == str(supervised.folder) for run in plan.trainings[1:])


def test_a_varied_key_reaches_the_stages_that_know_it(lab):
    grid = {"lora_rank": [2, 4], "num_samples": [3], "scst.learning_rate": [1e-3], "quantization": ["none"]}
    plan = lab.plan(models=[{"name": "m", "stages": [SFT | {"learning_rate": 1e-2}, SCST], "vary": grid}])
    sft, scst = plan.trainings[:2]
    assert (sft.keys["lora_rank"], sft.keys["learning_rate"], "num_samples" in sft.keys) == (2, 1e-2, False)
    assert (scst.keys["num_samples"], scst.keys["learning_rate"]) == (3, 1e-3)
    assert {run.keys["quantization"] for run in (*plan.trainings, *plan.evaluations)} == {"none"}
    assert (
        plan.cells[0].model.name == "m lora_rank=2 num_samples=3 scst.learning_rate=0.001 quantization=none"
    )
    assert sft.folder.name.startswith("m-lora_rank=2-quantization=none-sft-"), "not what SCST varies"


def test_labels_name_what_is_too_long_for_a_name():
    grid = {"prompts": {"one": ["a b"], "many": ["a b", "c d"]}}
    models = read_models([{"name": "m", "stages": [SFT], "vary": grid}], RecipeKeys())
    assert [model.name for model in models] == ["m prompts=one", "m prompts=many"]


def test_a_trained_model_is_evaluated_on_the_data_it_was_trained_on(lab):
    plan = lab.plan(
        models=[{"name": "m", "stages": [SFT | {"dataset": "elsewhere", "prompt": "p q"}]}], prompts=[]
    )
    (run,) = plan.evaluations
    assert (run.keys["dataset"], run.keys["prompt"]) == ("elsewhere", "p q")
    assert plan.cells[0].trained_on == ("p q",)


def fingerprints(plan):
    return {cell.run.fingerprint for cell in plan.cells}


def test_a_fingerprint_covers_all_that_matters_and_nothing_else(lab):
    before = fingerprints(lab.plan())
    assert fingerprints(lab.plan(launcher="accelerate launch")) == before
    assert fingerprints(lab.plan(output_dir=str(lab.folder / "elsewhere"))) == before
    changed = fingerprints(
        lab.plan(models=[{"name": "base"}, {"name": "lora", "stages": [SFT | {"max_steps": 3}]}])
    )
    assert len(before - changed) == 2, "the cells of the trained model, not those of the base"
    assert not before & fingerprints(lab.plan(evaluate={"bootstrap_samples": 7}))


def test_an_adapter_counts_by_its_content(lab):
    (lab.folder / "adapter_config.json").write_text("{}")
    models = [{"name": "mine", "adapter": str(lab.folder)}]
    before = fingerprints(lab.plan(models=models))
    (lab.folder / "adapter_model.safetensors").write_bytes(b"other weights")
    assert not before & fingerprints(lab.plan(models=models))


def test_without_training_and_chance_one_seed_says_all(lab):
    plan = lab.plan(seeds=[1, 2, 3], decodings=["greedy", "nucleus"], prompts=["p"])
    seeds = {(c.model.name, c.decoding): [] for c in plan.cells}
    for cell in plan.cells:
        seeds[cell.model.name, cell.decoding].append(cell.seed)
    assert seeds[("base", "greedy")] == [1]
    assert seeds[("base", "nucleus")] == seeds[("lora", "greedy")] == [1, 2, 3]


def test_decodings_are_those_of_the_evaluation_unless_the_matrix_has_its_own(lab):
    (lab.folder / "nucleus.yaml").write_text("decoding: nucleus-32")
    asked = {"evaluate": {"config": str(lab.folder / "nucleus.yaml")}}
    plan = lab.plan(**asked, prompts=["p"], seeds=[1, 2])
    assert {cell.decoding for cell in plan.cells} == {"nucleus-32"}
    assert {cell.run.keys["decoding"] for cell in plan.cells} == {"nucleus-32"}
    assert len(plan.cells) == 4, "there is chance in the base model's captions too"
    assert {cell.decoding for cell in lab.plan(**asked, decodings=["beam5"]).cells} == {"beam5"}
    beam = [{"name": "m", "decoding": "beam5"}, {"name": "n"}]
    assert [cell.decoding for cell in lab.plan(models=beam, prompts=["p"]).cells] == ["beam5", "greedy"]


def model(**keys):
    return {"models": [{"name": "m", "stages": [SFT]} | keys]}


WRONG = {
    "no models": ({"models": []}, "models: missing"),
    "no name": ({"models": [{"adapter": "x"}]}, "models: entry 1 should be a mapping with a name"),
    "a name twice": ({"models": [{"name": "m"}, {"name": "m"}]}, "models: 'm' stand there more than once"),
    "typo": (model(lora_rnk=3), "models: m: lora_rnk: unknown key; did you mean lora_rank"),
    "typo in a stage": (
        model(stages=[SFT | {"lora_rnk": 3}]),
        r"models: m: stage 1 \(sft\): lora_rnk: unknown key",
    ),
    "typo in a grid": (model(vary={"lora_rnk": [3]}), "models: m: vary: lora_rnk: unknown key"),
    "grid of no stage": (model(vary={"scst.baseline": ["greedy"]}), "the model has no stage 'scst'"),
    "key of no stage": (model(vary={"num_samples": [2]}), "num_samples: a key of `scst rl`"),
    "no list": (model(vary={"lora_rank": 3}), "models: m: vary: lora_rank: expected a list of values"),
    "value": (model(lora_rank="many"), "lora_rank: expected int, got 'many'"),
    "unknown stage": (model(stages=[{"stage": "dpo"}]), "models: m: stages: expected {stage: sft or scst"),
    "scst without sft": (model(stages=[SCST]), "models: m: stages: scst refines an adapter"),
    "no such file": (model(stages=[{"stage": "sft", "config": "no.yaml"}]), "there is no file 'no.yaml'"),
    "output_dir": (model(output_dir="x"), "models: m: output_dir: the matrix sets it"),
    "seed": (model(vary={"seed": [1]}), "models: m: vary: seed: the matrix sets it; use seeds"),
    "common": ({"common": {"promt": "x"}}, "common: promt: unknown key; did you mean prompt"),
    "evaluate": ({"evaluate": {"metricks": ["x"]}}, "evaluate: metricks: unknown key; did you mean metrics"),
    "adapter": ({"common": {"adapter": "x"}}, "common: adapter: "),
    "decoding": ({"decodings": ["lucky"]}, "decoding: unknown preset 'lucky'"),
    "limit": ({"max_new_tokens": ["x"]}, "max_new_tokens: expected a list of int, got 'x' in it"),
    "seed twice": ({"seeds": [1, 1]}, "seeds: a value stands there twice"),
    "prompt twice": ({"prompts": ["p", "p"]}, "prompts: 'p' stands there twice"),
    "prompt no text": ({"prompts": [3]}, "prompts: expected a list of texts"),
    "no checkpoint": ({"common": {}, "models": [{"name": "m"}]}, "models: m: model_name_or_path: missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_matrix_is_refused_with_the_key(lab, case):
    keys, message = WRONG[case]
    with pytest.raises(RecipeError, match=message):
        lab.plan(**keys)
