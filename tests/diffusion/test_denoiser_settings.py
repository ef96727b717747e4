"""What the settings of denoisers refuse, and which runs they do not fit."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from coalmine import budget, plugins
from coalmine.diffusion import settings
from coalmine.diffusion.settings import (
    DDPM,
    EDM,
    Fit,
    LoRA,
    Part,
    Pretraining,
    PrivateFit,
    Sampling,
    UNet,
    unfit,
)
from coalmine.methods import diffusion, dpdiffusion
from coalmine.outline import Outline
from coalmine.training.recipe import Augmentation, Siamese

NETWORK = {"width": 8, "multipliers": (1, 2)}
NEW = {"network": NETWORK, "objective": {"name": "edm"}}
OUTLINE = Outline(population=100.0, classes=10, channels=1, experts={}, image_size=(8, 8))


def fit(**changes: Any) -> Fit:
    return Fit(**{**NEW, "steps": 10, **changes})


def private(**changes: Any) -> PrivateFit:
    return PrivateFit(**{**NEW, "steps": 10, "batch_size": 20, "epsilon": 1.0, "delta": 1e-3, **changes})


def pretraining(**changes: Any) -> Pretraining:
    return Pretraining(**{**NEW, "steps": 10, **changes})


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (UNet, {"multipliers": (1, 2), "attention": (2,)}, r"attention names \(2,\), but the resolutions are 0 to 1"),
        (UNet, {"width": 6}, "multiple of 4"),
        (UNet, {"multipliers": ()}, "at least 1 item"),
        (UNet, {"attention": (-1,)}, "greater than or equal to 0"),
        (UNet, {"dropout": 1.0}, "less than 1"),
        (EDM, {"name": "edm", "sigma_min": 3.0, "sigma_max": 3.0}, r"must be less than sigma_max \(3\)"),
        (Part, {"weight": 1.0, "low": 5, "high": 5}, "low is 5 and high 5: a part needs low < high"),
        (Part, {"weight": 0.0, "low": 0, "high": 5}, "greater than 0"),
        (DDPM, {"name": "ddpm", "steps": 9, "times": [{"weight": 1.0, "low": 0, "high": 10}]}, "only 9 time steps"),
        (
            DDPM,
            {"name": "ddpm", "steps": 20, "schedule": "linear"},
            "the linear schedule cannot grow; set more than 20",
        ),
        (Fit, {"steps": 1}, "set either pretrained, or network and objective for a new network"),
        (Fit, {"steps": 1, "network": NETWORK}, "set either pretrained, or network and objective"),
        (Fit, {"steps": 1, "objective": {"name": "edm"}}, "set either pretrained, or network and objective"),
        (Fit, {"steps": 1, "pretrained": "a", "network": NETWORK}, "brings its own network and objective"),
        (Fit, {"steps": 1, "pretrained": "a", "objective": {"name": "edm"}}, "brings its own network and objective"),
        (Fit, {"steps": 1, "pretrained": "a", **NEW}, "brings its own network and objective; leave these out"),
        (Fit, {"steps": 1, **NEW, "lora": {}}, "lora changes a pre-trained network; set pretrained, or lora: null"),
        (PrivateFit, {"steps": 1, "batch_size": 1, **NEW}, "set either epsilon .* or noise_multiplier, not both"),
        (PrivateFit, {"steps": 1, "batch_size": 1, "epsilon": 1.0}, "set either pretrained, or network and objective"),
        (Sampling, {"guidance": -0.1}, "greater than or equal to 0"),
    ],
)
def test_blocks_that_cannot_work_are_refused(kind: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        kind(**given)


def test_blocks_that_can_work_are_taken() -> None:
    assert UNet(width=8, multipliers=(1, 2), attention=(0, 1)).attention == (0, 1)
    assert DDPM(name="ddpm", steps=10, times=({"weight": 1.0, "low": 9, "high": 10},)).times[0].low == 9
    assert DDPM(name="ddpm", steps=21, schedule="linear").steps == 21
    assert fit().pretrained is None
    assert Fit(steps=1, pretrained="a", lora={}).lora == LoRA(rank=4, scale=1.0)
    assert private().views == 1


def test_an_objective_is_read_by_its_name() -> None:
    read = TypeAdapter(settings.Objective).validate_json
    assert isinstance(read('{"name": "edm"}'), EDM)
    assert isinstance(read('{"name": "ddpm"}'), DDPM)
    with pytest.raises(ValidationError, match="sigma_data"):
        read('{"name": "ddpm", "sigma_data": 0.5}')


def test_published_constants_are_the_defaults() -> None:
    """Karras et al., table 1; Ho et al., section 4."""
    own = EDM(name="edm")
    assert (own.sigma_data, own.p_mean, own.p_std, own.sigma_min, own.sigma_max, own.rho) == (
        0.5,
        -1.2,
        1.2,
        0.002,
        80,
        7,
    )
    assert (DDPM(name="ddpm").steps, DDPM(name="ddpm").schedule, DDPM(name="ddpm").times) == (1000, "cosine", ())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"images": 5}, "set either fit, or generator"),
        ({"images": 5, "fit": {**NEW, "steps": 1}, "generator": "b"}, "set either fit, or generator"),
        ({"fit": {**NEW, "steps": 1}}, "images is required where they are drawn from noise"),
        ({"generator": "b"}, "images is required where they are drawn from noise"),
        ({"generator": "b", "strength": 1.1}, "less than or equal to 1"),
    ],
)
def test_entries_of_diffusion_that_cannot_work_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        diffusion.Settings(**given)


def test_images_from_images_need_no_number() -> None:
    assert diffusion.Settings(generator="b", strength=0.5).images is None
    with pytest.raises(ValidationError, match="images"):
        dpdiffusion.Settings(fit=private())


# --- runs ------------------------------------------------------------------------------------------------------------


def test_what_fits_a_run_is_not_objected_to() -> None:
    ddpm = fit(objective={"name": "ddpm"})
    for own, sampling in ((fit(), Sampling(solver="heun")), (ddpm, Sampling()), (private(), Sampling())):
        assert unfit(own, sampling, OUTLINE) is None
        assert unfit(own, sampling, OUTLINE._replace(image_size=None)) is None


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    ("start", "sampling", "field", "told"),
    [
        ({"objective": {"name": "ddpm"}}, Sampling(solver="heun"), "solver", "is heun, .* take euler, which is DDIM"),
        ({"network": {"width": 8, "multipliers": (1, 2, 2, 2, 2)}}, Sampling(), "", "images 4 times, which 8x8 do not"),
    ],
)
def test_a_start_that_does_not_fit_is_objected_to(
    start: dict[str, Any], sampling: Sampling, field: str, told: str, pretrained: bool
) -> None:
    outline = OUTLINE._replace(pretrained={"public": pretraining(**start)})
    own = Fit(steps=1, pretrained="public") if pretrained else fit(**start)
    found = unfit(own, sampling, outline)
    assert found
    assert found[0] == (field or ("fit.pretrained" if pretrained else "fit.network.multipliers"))
    assert re.search(told, found[1])


def test_sides_are_halved_once_less_than_there_are_resolutions() -> None:
    three = fit(network={"width": 8, "multipliers": (1, 2, 2)})
    for size, fits in (((8, 8), True), ((12, 8), True), ((8, 6), False), ((6, 8), False), ((4, 4), True)):
        assert (unfit(three, Sampling(), OUTLINE._replace(image_size=size)) is None) is fits


def test_dropout_is_objected_to_in_private_training_only() -> None:
    dropout = {"network": {"width": 8, "dropout": 0.1, "multipliers": (1, 2)}}
    outline = OUTLINE._replace(pretrained={"public": pretraining(**dropout)})
    assert unfit(fit(**dropout), Sampling(), outline) is None
    assert unfit(Fit(steps=1, pretrained="public"), Sampling(), outline) is None
    assert unfit(private(**dropout), Sampling(), outline)[0] == "fit.network.dropout"
    budgeted = {"steps": 1, "batch_size": 1, "epsilon": 1.0}
    field, told = unfit(PrivateFit(**budgeted, pretrained="public"), Sampling(), outline)
    assert field == "fit.pretrained"
    assert told.startswith("has dropout, ")


@pytest.mark.parametrize("own", [fit, private])
def test_siamese_augmentation_is_objected_to(own: Any) -> None:
    siamese = Augmentation(flip=False, shift=0, siamese=Siamese())
    field, told = unfit(own(augmentation=siamese), Sampling(), OUTLINE)
    assert field == "fit.augmentation.siamese"
    assert "each image by itself" in told


def test_low_rank_changes_without_their_package_are_objected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Fit(steps=1, pretrained="public", lora=LoRA())
    outline = OUTLINE._replace(pretrained={"public": pretraining()})
    assert unfit(own, Sampling(), outline) is None
    assert importlib.util.find_spec("peft")
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    assert unfit(own, Sampling(), outline)[0] == "fit.lora"
    assert unfit(fit(), Sampling(), outline) is None


def test_entries_judge_the_denoisers_that_they_draw_from() -> None:
    ddpm = diffusion.Settings(fit=fit(objective={"name": "ddpm"}), images=5)
    outline = OUTLINE._replace(settings={"other": ddpm})
    for solver, field in (("euler", None), ("heun", "solver")):
        own = diffusion.Settings(generator="other", images=5, solver=solver)
        found = diffusion.objection(own, None, None, outline)
        assert (found and found[0]) == field


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_budgets_that_do_not_go_with_the_private_data_are_objected_to() -> None:
    cases = [
        ({"batch_size": 101}, "batch_size", "is 101, but a shadow model has only 100 samples on average."),
        ({"delta": 0.01}, "delta", "is 0.01; a guarantee that means something needs less than 1 / 100."),
    ]
    for changes, field, told in cases:
        assert budget.objection(private(**changes), 100.0) == (field, told)
        assert budget.objection(private(**changes), None) is None
        own = dpdiffusion.Settings(fit=private(**changes), images=5)
        assert dpdiffusion.objection(own, None, None, OUTLINE) == (f"fit.{field}", told)
    assert budget.objection(private(batch_size=100, delta=0.0099), 100.0) is None
    own = dpdiffusion.Settings(fit=private(objective={"name": "ddpm"}), images=5, solver="heun")
    assert dpdiffusion.objection(own, None, None, OUTLINE)[0] == "solver"
    assert dpdiffusion.objection(dpdiffusion.Settings(fit=private(), images=5), None, None, OUTLINE) is None


def test_a_guarantee_is_that_of_its_mechanism() -> None:
    given = budget.guarantee(private(epsilon=None, noise_multiplier=2.0, accountant="rdp"), 80.0)
    mechanism = given.mechanism
    assert (mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps) == (2.0, 0.25, 10)
    assert (given.delta, given.accountant) == (1e-3, "rdp")
    target = budget.guarantee(private(epsilon=given.epsilon, accountant="rdp"), 80.0)
    assert target.mechanism.noise_multiplier == pytest.approx(2.0, rel=1e-2)
    assert target.epsilon <= given.epsilon


# --- method files ----------------------------------------------------------------------------------------------------


def method_file(settings: Any, **functions: Any) -> SimpleNamespace:
    return SimpleNamespace(Settings=settings, **functions)


def test_a_method_file_that_fits_must_synthesize_and_have_a_block_fit() -> None:
    told = "defines `fit`, whose generative models only `synthesize` can use"
    sound = method_file(diffusion.Settings, fit=print, synthesize=print)
    assert plugins._objection_to_method(sound, "m.py") is None
    for broken in (
        method_file(diffusion.Settings, fit=print, train=print),
        method_file(Sampling, fit=print, synthesize=print),
    ):
        assert told in plugins._objection_to_method(broken, "m.py")
    assert "exactly one of" in plugins._objection_to_method(method_file(diffusion.Settings, fit=print), "m.py")


def test_a_method_file_with_a_guarantee_must_clip_where_it_sees_private_data() -> None:
    sound = method_file(dpdiffusion.Settings, fit=print, synthesize=print, guarantee=print)
    assert plugins._objection_to_method(sound, "m.py") is None
    broken = method_file(diffusion.Settings, fit=print, synthesize=print, guarantee=print)
    assert "so its Settings need `clip`" in plugins._objection_to_method(broken, "m.py")
    assert {"diffusion", "dpdiffusion"} <= set(plugins.available("methods"))
