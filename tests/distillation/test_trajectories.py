"""Experts: descent step by step, snapshots that stay what they were, and the file that they are read from."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from coalmine.distillation import experts, trajectories
from coalmine.distillation.experts import Training
from coalmine.distillation.settings import Experts, Flat
from coalmine.distillation.space import Space
from coalmine.distillation.trajectories import Trajectories
from coalmine.errors import CoalmineError
from coalmine.models.build import build
from coalmine.models.settings import MLP, ConvNet
from coalmine.seeds import torch_generator
from coalmine.shadows import Shadow
from coalmine.training import siamese, whitening
from coalmine.training.recipe import Normalisation, Siamese

SAMPLES, CLASSES, SIZE = 30, 3, 4
NORMALISATION = Normalisation(mean=(0.3,), std=(0.35,))
SPACE = Space(NORMALISATION, torch.device("cpu"))


def shadow(samples: int = SAMPLES, channels: int = 1) -> Shadow:
    """A shadow model that sees every other image of its pool."""
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (2 * samples, SIZE, SIZE, channels), dtype=np.uint8)
    index = np.arange(0, 2 * samples, 2)
    return Shadow(4, pool, index, rng.integers(0, CLASSES, samples), np.array([], dtype=np.int64))


def settings(**changes: Any) -> Experts:
    defaults = {"model": ConvNet(depth=1, width=4), "experts": 2, "epochs": 3, "batch_size": 8, "siamese": None}
    return Experts(**{**defaults, "learning_rate": 0.1, **changes})


def training(how: Experts, mode: Any = "sequential", **changes: Any) -> Training:
    return Training(
        **{"name": "tested", "seed": 5, "settings": how, "classes": CLASSES, "mode": mode} | changes, progress=print
    )


def trained(how: Experts, of: Shadow | None = None, space: Space = SPACE, **changes: Any) -> np.ndarray:
    of = of or shadow()
    found = dict(training(how, **changes).run(of, space, range(how.experts)))
    assert list(found) == list(range(how.experts))
    return np.stack([found[expert] for expert in range(how.experts)])


def naive(how: Experts, expert: int, of: Shadow, pixels: torch.Tensor) -> list[np.ndarray]:
    """One expert by PyTorch's own optimiser, with a snapshot (a copy) whenever another epoch is complete."""
    generator = {
        purpose: torch_generator(5, "experts", "tested", of.number, expert, purpose)
        for purpose in ("initialisation", "order", "augmentation")
    }
    network = build(how.model, 1, SIZE, CLASSES, generator["initialisation"])
    optimiser = torch.optim.SGD(
        network.parameters(), how.learning_rate, momentum=how.momentum, weight_decay=how.weight_decay
    )
    order = torch.cat([torch.randperm(SAMPLES, generator=generator["order"]) for _ in range(how.epochs)])
    # The last batch may run into one epoch more.
    order = torch.cat([order, torch.randperm(SAMPLES, generator=generator["order"])])
    labels = torch.from_numpy(of.labels)

    def snapshot() -> np.ndarray:
        return torch.cat([weight.detach().flatten() for weight in network.parameters()]).numpy().copy()

    snapshots, seen = [snapshot()], 0
    while len(snapshots) <= how.epochs:
        batch = order[seen : seen + how.batch_size]
        x = pixels[batch]
        if how.siamese:
            x = siamese.apply(x, how.siamese, siamese.draw(how.siamese, generator["augmentation"], images=len(x)))
        optimiser.zero_grad()
        F.cross_entropy(network(x), labels[batch]).backward()
        optimiser.step()
        seen += how.batch_size
        if seen >= len(snapshots) * SAMPLES:
            snapshots.append(snapshot())
    return snapshots


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"siamese": Siamese()},
        {"model": MLP(hidden=(6,)), "batch_size": 10},
    ],
    ids=["plain", "momentum", "siamese", "mlp"],
)
def test_experts_equal_a_naive_loop_and_no_snapshot_is_another(changes: dict[str, Any]) -> None:
    how, of = settings(**changes), shadow()
    found = trained(how)
    pixels = torch.from_numpy((of.images / 255 - 0.3) / 0.35).float().movedim(-1, 1)
    for expert in range(2):
        expected = naive(how, expert, of, pixels)
        np.testing.assert_allclose(found[expert], np.stack(expected), rtol=1e-4, atol=1e-6)
        steps = np.abs(np.diff(found[expert], axis=0)).max(axis=1)
        assert len(steps) == how.epochs
        assert (steps > 1e-3).all()


def test_snapshots_are_copies_of_weights_that_go_on_changing() -> None:
    weights = [torch.ones(2, 3, 4), torch.ones(2, 5)]
    snapshot = experts._snapshot(weights)
    assert snapshot.shape == (2, 17)
    weights[0] += 1
    weights[1] += 1
    assert float(snapshot.max()) == 1
    single = [torch.ones(1, 4)]
    kept = experts._snapshot(single)
    single[0] += 1
    assert float(kept.max()) == 1


def test_an_epoch_ends_when_every_sample_has_been_seen_so_often() -> None:
    order = experts.shuffled(torch.Generator().manual_seed(0), 10, 4)
    seen = torch.cat([next(order) for _ in range(10)])
    for epoch in range(4):
        assert sorted(seen[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    # 30 samples in batches of 8: epochs 1 to 3 end with steps 4, 8 and 12.
    assert [math.ceil(epoch * 30 / 8) for epoch in (1, 2, 3)] == [4, 8, 12]
    short, long = trained(settings(epochs=1)), trained(settings(epochs=3))
    np.testing.assert_array_equal(short, long[:, :2])


def test_stacked_experts_are_the_experts_one_by_one_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    how = settings(experts=3, siamese=Siamese())
    alone = trained(how)
    np.testing.assert_allclose(trained(how, mode="stacked"), alone, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(experts, "STACKED_AT_ONCE", 2)
    np.testing.assert_allclose(trained(how, mode="stacked"), alone, rtol=1e-3, atol=1e-5)


def test_no_expert_depends_on_which_others_are_trained() -> None:
    how = settings(experts=3)
    ((number, alone),) = training(how).run(shadow(), SPACE, [1])
    assert number == 1
    assert alone.tobytes() == trained(how)[1].tobytes()


@pytest.mark.parametrize("changes", [{"seed": 6}, {"name": "other"}])
def test_experts_of_another_seed_or_name_are_others(changes: dict[str, Any]) -> None:
    how = settings(experts=1, epochs=1)
    assert np.abs(trained(how) - trained(how, **changes)).max() > 0.01


def test_experts_see_the_samples_of_their_shadow_model_only() -> None:
    how, of = settings(experts=1, siamese=Siamese()), shadow()
    fitted = replace(SPACE, whitening=whitening.fit(of.images))
    pool = of.pool.copy()
    excluded = np.setdiff1d(np.arange(len(pool)), of.index)
    pool[excluded] = 255 - pool[excluded]
    other = replace(of, pool=pool)
    assert trained(how, of).tobytes() == trained(how, other).tobytes()
    again = replace(SPACE, whitening=whitening.fit(other.images))
    assert trained(how, of, fitted).tobytes() == trained(how, other, again).tobytes()
    pool[of.index[3]] = 255 - pool[of.index[3]]
    assert trained(how, of).tobytes() != trained(how, other).tobytes()


def test_whitened_experts_are_trained_on_whitened_images_without_normalisation() -> None:
    how, of = settings(experts=1), shadow()
    fitted = whitening.fit(of.images)
    found = trained(how, of, replace(SPACE, whitening=fitted))
    expected = naive(how, 0, of, torch.from_numpy(fitted.forward(of.images)).movedim(-1, 1))
    np.testing.assert_allclose(found[0], np.stack(expected), rtol=1e-4, atol=1e-6)


# --- flat minima -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_flat_direction_is_computed_as_its_paper_writes_it(adaptive: bool) -> None:
    """On a quartic, for two models, with every sum written out."""
    rng = np.random.default_rng(1)
    shapes = [(3, 2), (4,)]
    w = [rng.normal(size=(2, *shape)) for shape in shapes]
    flat = Flat(rho=0.3, alpha=0.7, adaptive=adaptive)

    def gradient(weights: Any) -> Any:
        loss = sum((weight**4).flatten(1).sum(1) + (weight**2).flatten(1).sum(1) for weight in weights)
        return loss, [4 * weight.detach() ** 3 + 2 * weight.detach() for weight in weights]

    loss, found = experts.flat_gradient(gradient, [torch.tensor(one) for one in w], flat)
    for model in range(2):
        vector = np.concatenate([one[model].ravel() for one in w])
        g = 4 * vector**3 + 2 * vector
        factor = np.abs(vector) if adaptive else np.ones_like(vector)
        e = flat.rho * factor**2 * g / np.sqrt(np.sum((factor * g) ** 2))
        s = 4 * (vector + e) ** 3 + 2 * (vector + e)
        orthogonal = g - s * (g @ s) / (s @ s)
        assert abs(orthogonal @ s) < 1e-9
        expected = s - flat.alpha * orthogonal
        ours = np.concatenate([one[model].numpy().ravel() for one in found])
        np.testing.assert_allclose(ours, expected, rtol=1e-9)
        assert float(loss[model]) == pytest.approx(np.sum(vector**4 + vector**2))


def test_flat_experts_take_the_flat_direction_of_every_batch() -> None:
    plain, flat = settings(experts=1), settings(experts=1, flat=Flat(rho=0.5, alpha=0.3))
    vanishing = settings(experts=1, flat=Flat(rho=1e-9, alpha=0.3))
    np.testing.assert_allclose(trained(vanishing), trained(plain), rtol=1e-3, atol=1e-5)
    assert np.abs(trained(flat) - trained(plain)).max() > 0.01


# --- files -------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, how: Experts, weights: np.ndarray, zca: whitening.Whitening | None = None) -> Trajectories:
    spec = {"settings": how.model_dump(mode="json"), "normalisation": NORMALISATION.model_dump(mode="json")}
    header = {"stage": "experts", "spec": spec, "shadow": 4, "shape": {"channels": 1, "image_size": 4, "classes": 3}}
    trajectories.write(tmp_path / "004.safetensors", header, weights, zca)
    return Trajectories(tmp_path / "004.safetensors")


def test_a_snapshot_is_read_in_the_shapes_and_the_order_of_the_networks_weights(tmp_path: Path) -> None:
    how = settings()
    weights = trained(how)
    read = written(tmp_path, how, weights)
    assert (read.experts, read.epochs, read.settings, read.normalisation) == (2, 3, how, NORMALISATION)
    assert read.whitening is None
    networks = read.networks(1, torch.device("cpu"))
    fresh = networks.fresh([torch_generator(5, "experts", "tested", 4, 1, "initialisation")])
    first = read.snapshot(1, 0)
    assert [tuple(one.shape) for one in first] == [tuple(one.shape[1:]) for one in fresh]
    for one, expected in zip(first, fresh, strict=True):
        torch.testing.assert_close(one, expected[0], rtol=0, atol=0)
    for expert in range(2):
        for epoch in range(4):
            row = torch.cat([one.flatten() for one in read.snapshot(expert, epoch)]).numpy()
            np.testing.assert_array_equal(row, weights[expert, epoch])


def test_a_snapshot_that_is_changed_changes_neither_the_file_nor_the_next_reader(tmp_path: Path) -> None:
    read = written(tmp_path, settings(), trained(settings()))
    first = read.snapshot(0, 1)
    expected = first[0].clone()
    first[0] += 1
    torch.testing.assert_close(read.snapshot(0, 1)[0], expected, rtol=0, atol=0)


def test_float16_halves_the_file_and_rounds_to_eleven_bits(tmp_path: Path) -> None:
    exact, halved = trained(settings()), trained(settings(storage="float16"))
    assert (exact.dtype, halved.dtype) == (np.float32, np.float16)
    normal = np.abs(exact) > 2.0**-14
    assert np.abs(halved[normal] / exact[normal] - 1).max() <= 2.0**-11
    assert np.abs(halved - exact)[~normal].max() <= 2.0**-25
    read = written(tmp_path, settings(storage="float16"), halved)
    assert read.snapshot(1, 2)[0].dtype == torch.float32
    np.testing.assert_array_equal(read.snapshot(1, 2)[-1].numpy(), halved[1, 2, -3:].astype(np.float32))
    size = read.path.stat().st_size
    assert size - halved.nbytes < 3000
    # Two epochs at this rate move the weights by 3%: where a student has to go is off by less than 1% of the way.
    moved = np.linalg.norm(exact[:, 3] - exact[:, 1], axis=1)
    error = np.linalg.norm((halved - exact)[:, 3] - (halved - exact)[:, 1], axis=1)
    assert (error / moved).max() < 0.01


def test_the_whitening_of_the_experts_is_read_with_them(tmp_path: Path) -> None:
    how, fitted = settings(zca=True), whitening.fit(shadow().images)
    read = written(tmp_path, how, trained(how), fitted)
    assert read.whitening is not None
    np.testing.assert_array_equal(read.whitening.mean, fitted.mean)
    np.testing.assert_array_equal(read.whitening.matrix, fitted.matrix)


@pytest.mark.parametrize(("expert", "epoch"), [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_a_snapshot_that_is_not_there_is_refused(tmp_path: Path, expert: int, epoch: int) -> None:
    read = written(tmp_path, settings(), trained(settings()))
    with pytest.raises(CoalmineError, match=r"004\.safetensors has 2 experts of 3 epochs, so there is no expert"):
        read.snapshot(expert, epoch)


def test_broken_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CoalmineError, match=r"004\.safetensors does not exist"):
        Trajectories(tmp_path / "004.safetensors")
    whole = written(tmp_path, settings(), trained(settings())).path
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:300])
    with pytest.raises(CoalmineError, match=r"cut\.safetensors is not a readable Coalmine model"):
        Trajectories(tmp_path / "cut.safetensors")
    trajectories.write_safetensors(tmp_path / "model.safetensors", {"spec": {}}, {"head.bias": np.zeros(3)})
    with pytest.raises(CoalmineError, match=r"model\.safetensors lacks 'shape'"):
        Trajectories(tmp_path / "model.safetensors")
    broken = trained(settings())
    broken[1, 2, 5] = np.nan
    read = written(tmp_path, settings(), broken)
    with pytest.raises(CoalmineError, match="weights of expert 1 after epoch 2 are NaN or infinite"):
        read.snapshot(1, 2)


def test_divergence_and_weights_too_large_for_their_storage_are_told_with_a_remedy() -> None:
    with pytest.raises(CoalmineError, match=r"model 4: expert 0 diverged in epoch 1 of 3 .* lower learning_rate"):
        trained(settings(learning_rate=1e38, model=MLP(hidden=(6,))))
    with pytest.raises(CoalmineError, match=r"a weight of .* is too large for storage: float16; use float32"):
        training(settings(storage="float16"))._stored([torch.tensor([[1.0, 7e4]])])


def test_batch_norm_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValueError, match=r"batch norm, whose running statistics are no weights .* norm: instance"):
        Experts(model=ConvNet(norm="batch"))
