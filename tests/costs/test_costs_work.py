"""The work of loops and methods, against counts by hand."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import yaml
from scene import MODEL, OPERATIONS, WEIGHTS, MadeUp, counter, recipe

from coalmine import plugins
from coalmine.config import Run, check
from coalmine.costs.presets import REPOSITORY, preset_run
from coalmine.costs.scenes import RunScene
from coalmine.costs.stages import number_of_views, parts
from coalmine.costs.work import Work
from coalmine.diffusion.settings import Sampling
from coalmine.distillation.settings import Experts
from coalmine.methods import coreset, dfkd, dm, dpsgd, dsa, mtt, undefended
from coalmine.training.augment import fixed_views

NETWORK = MODEL


def test_works_add_up_but_for_memory() -> None:
    both = Work(1, 2, 3, 4, 5) + Work(10, 20, 1, 40, 50)
    assert both == Work(11, 22, 3, 44, 55)
    assert Work(1, 2, 3, 4, 5) * 7 == Work(7, 14, 3, 4, 5), "done seven times, with one result"


def test_one_epoch_takes_three_passes_over_every_image() -> None:
    one = counter().training(100, epochs=1)
    assert one.operations == 3 * OPERATIONS * 100
    # Linear, ReLU and linear, thrice; three calls for each of four tensors; twenty for the batch: five steps of these.
    assert one.launches == 5 * (3 * 3 + 3 * 4 + 20)


def test_twice_the_epochs_are_twice_the_work_and_no_more_memory() -> None:
    one, two = (counter(training=recipe(epochs=n).model_dump(mode="json")).training(100) for n in (4, 8))
    assert two.operations == 2 * one.operations
    assert two.launches == 2 * one.launches
    assert two.memory == one.memory


def test_a_larger_batch_has_fewer_launches_and_more_memory() -> None:
    small, large = (counter(training=recipe(batch_size=n).model_dump(mode="json")).training(100) for n in (10, 50))
    assert large.operations == small.operations
    assert large.launches == small.launches / 5
    assert large.memory > small.memory


def test_a_batch_is_no_larger_than_the_set() -> None:
    assert counter(training=recipe(batch_size=500).model_dump(mode="json")).training(100).operations == pytest.approx(
        4 * 3 * OPERATIONS * 100
    )


def test_undefended_trains_on_all_private_samples() -> None:
    assert undefended.work(undefended.Settings(), counter()).operations == 4 * 3 * OPERATIONS * 100


def test_private_steps_hold_a_gradient_for_every_example() -> None:
    own = {"noise_multiplier": 1.0, "steps": 7, "batch_size": 30}
    few, many = (dpsgd.work(dpsgd.Settings(**own, views=2, micro_batch=n), counter()) for n in (10, 20))
    assert few.operations == many.operations == 7 * 30 * 2 * 3 * OPERATIONS
    assert few.launches > many.launches
    held = 2 * 4 * WEIGHTS
    assert many.memory - few.memory == pytest.approx(10 * (held + 4 * 2 * (16 + 16 + 5)))


def test_a_random_coreset_takes_no_network_and_the_others_train_one() -> None:
    random = coreset.work(coreset.Settings(selection="random", fraction=0.3), counter())
    assert (random.operations, random.images, random.disk) == (0, 30, 30 * (64 + 8 + 8))
    forgetting = coreset.work(coreset.Settings(selection="forgetting", scoring_epochs=9), counter())
    assert forgetting.operations == 9 * 3 * OPERATIONS * 100
    norms = coreset.work(coreset.Settings(selection="el2n", scoring_epochs=9, proxies=2), counter())
    assert norms.operations == 2 * (9 * 3 + 1) * OPERATIONS * 100


def test_dm_looks_at_real_images_and_goes_back_to_synthetic_ones() -> None:
    own = dm.Settings(images_per_class=2, iterations=11, batch_size=8, network=NETWORK, siamese=None)
    found = dm.work(own, counter())
    assert found.operations == 11 * OPERATIONS * (5 * 8 + 2 * 5 * 2)
    assert found.images == 10
    assert found.disk == 10 * (4 * 64 + 8 + 8), "pixels are float32"


def test_dsa_counts_matching_and_the_training_between() -> None:
    own = dsa.Settings(
        images_per_class=2, iterations=3, outer_steps=4, inner_epochs=5, batch_size=8, network=NETWORK, siamese=None
    )
    matching = 3 * 4 * (3 * 5 * 8 + 9 * 10)
    between = 3 * (4 - 1) * 5 * 3 * 10
    assert dsa.work(own, counter()).operations == OPERATIONS * (matching + between)


@pytest.mark.parametrize(
    ("estimator", "memory", "passes"), [("exact", None, 9), ("exact", "checkpointed", 12), ("tesla", None, 9)]
)
def test_mtt_counts_the_passes_of_every_estimator(estimator: str, memory: str | None, passes: int) -> None:
    own = mtt.Settings(
        experts="some", images_per_class=2, iterations=3, steps=4, batch_syn=6, estimator=estimator, memory=memory
    )
    experts = {"settings": Experts(model=MODEL, siamese=None).model_dump(mode="json")}
    found = mtt.work(own, counter(MadeUp(experts=experts)))
    assert found.operations == 3 * 4 * 6 * passes * OPERATIONS


def test_unrolled_matching_holds_the_graphs_of_all_steps() -> None:
    experts = {"settings": Experts(model=MODEL, siamese=None).model_dump(mode="json")}
    unrolled, tesla = (
        mtt.work(mtt.Settings(experts="some", iterations=1, steps=50, estimator=one), counter(MadeUp(experts=experts)))
        for one in ("exact", "tesla")
    )
    assert unrolled.memory > 10 * tesla.memory


def test_data_free_rounds_ask_teacher_and_student() -> None:
    own = dfkd.Settings(algorithm="deepinversion", batch_size=10, generator_steps=6, distillation_steps=7, images=30)
    made, taught = dfkd.work(own, counter(teacher={"model": MODEL.model_dump(mode="json")}))
    # Four epochs of one round; teacher and student, forward and back to the pixels.
    assert made.operations == 4 * 6 * 10 * (2 + 2) * OPERATIONS
    assert taught.operations == 4 * 7 * 20 * (3 + 1) * OPERATIONS
    assert (made.images, made.disk) == (30, 30 * (64 + 4 * 5 + 8))


def test_passes_over_a_memory_grow_with_it_until_it_is_full() -> None:
    own = dfkd.Settings(algorithm="reduced", batch_size=10, warmup=1, passes=2, memory=35, images=10)
    _, taught = dfkd.work(own, counter(teacher={"model": MODEL.model_dump(mode="json")}))
    steps = sum(2 * images / 20 for images in (20, 30, 35, 35))
    assert taught.operations == pytest.approx(steps * 20 * (3 + 1) * OPERATIONS)


def test_heun_asks_twice_but_in_the_last_step_and_guidance_doubles_that() -> None:
    assert Sampling(solver="euler", levels=18).evaluations(18) == 18
    assert Sampling(solver="heun", levels=18).evaluations(18) == 35, "Karras et al. (2022): NFE 35 for 18 steps"
    assert Sampling(solver="heun", guidance=1.0).evaluations(18) == 70
    assert Sampling(solver="heun").evaluations(0) == 0


@pytest.mark.parametrize("views", [{"flip": flip, "shift": shift} for flip in (True, False) for shift in (0, 4)])
def test_views_are_as_many_as_are_queried(views: dict[str, Any]) -> None:
    assert number_of_views(views) == len(fixed_views(**views))


def test_queries_are_counted_view_by_view_and_their_answers_fill_the_file() -> None:
    made = {"settings": {"selection": "random", "fraction": 0.3}, "module": "coreset", "method": "random"}
    spec = {"method": "random", "model": MODEL.model_dump(mode="json"), "views": {"flip": True, "shift": 4}}
    scene = MadeUp(synthesize={**counter().of, **made}, train={})
    (queries,) = parts("logits", spec, scene)
    assert queries.work
    assert queries.work.operations == OPERATIONS * (20 * 18 + 40 + 30)
    assert queries.disk
    assert queries.disk > 4 * 5 * (20 * 18 + 40 + 30)


def configured() -> list[str]:
    presets = sorted(path.stem for path in (REPOSITORY / "workflow/presets").glob("*.yaml"))
    return ["config.yaml", *presets]


def configuration(name: str) -> Run:
    if name != "config.yaml":
        return preset_run(name)
    return check(yaml.safe_load((REPOSITORY / "config.yaml").read_text()))


@pytest.mark.parametrize("name", configured())
def test_every_method_of_every_configuration_tells_its_work(name: str) -> None:
    run = configuration(name)
    scene = RunScene(run)
    for method in run.audited:
        programs = {"train": ["train"], "reuse": ["train"], "distil": ["distil"]}.get(
            run.kind(method), ["synthesize", "train"]
        )
        for program in [*programs, "logits", *(["fit"] if run.fits(method) else [])]:
            for part in parts(program, scene.spec(program, method), scene):
                assert part.work is not None, (method, program)
                assert part.disk is not None, (method, program)
                assert part.disk > 0, (method, program)
                networks = "random" not in method or program != "synthesize"
                assert (part.work.operations > 0) == networks, (method, program)
    for experts in run.experts:
        (part,) = parts("experts", scene.spec("experts", experts), scene)
        assert part.work
        assert part.work.operations > 0
    for pretrained in run.pretrained:
        (part,) = parts("pretrain_denoiser", scene.spec("pretrain_denoiser", pretrained), scene)
        assert part.work
        assert part.work.operations > 0


def test_every_method_file_of_the_package_tells_its_work() -> None:
    for name in plugins.available("methods"):
        module = importlib.import_module(f"coalmine.methods.{name}")
        reuses = "set" in module.Settings.model_fields
        assert hasattr(module, "work") != reuses, name
        assert hasattr(module, "fit_work") == hasattr(module, "fit"), name


def test_a_method_file_without_work_is_unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(coreset, "work")
    spec = {**counter().of, "settings": {"selection": "random", "fraction": 0.3}, "module": "coreset"}
    (part,) = parts("synthesize", spec, MadeUp())
    assert part.work is None
    assert part.disk is None
