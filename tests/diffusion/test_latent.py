"""Stable Diffusion: low-rank changes, loss and drawing against closed forms and diffusers' own pipelines."""

from __future__ import annotations

import math
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError

from coalmine.diffusion import latent_settings
from coalmine.diffusion.latent import ADAPTED, BASE, StableDiffusion, min_snr_weight, resized, snapshot, weighted_error
from coalmine.diffusion.latent_settings import LatentFit, LatentSampling
from coalmine.errors import CoalmineError

CPU = torch.device("cpu")
SOLVERS = ["ddim", "pndm", "dpmsolver", "unipc"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LABELS = torch.tensor([3, 1, 4])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("tiny") / "model")


def settings(folder: Path, **changes) -> LatentFit:
    return LatentFit(**{"path": str(folder), "steps": 10, "resolution": 16, "precision": "float32", **changes})


def load(folder: Path, **changes) -> StableDiffusion:
    return StableDiffusion(settings(folder, **changes), tiny.CLASSES, CPU)


@pytest.fixture(scope="module")
def model(folder) -> StableDiffusion:
    """A model with random low-rank changes that do change it."""
    model = load(folder)
    model.begin(seeded(5))
    with torch.no_grad():
        for parameter in model.adapter.values():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(6)) * 0.3)
    return model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(seed: int = 0, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=seeded(seed))


# Low-rank changes


def test_low_rank_changes_start_as_none(folder):
    from diffusers import UNet2DConditionModel

    model = load(folder)
    plain = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    told = torch.randn(11, 20, 16, generator=seeded(1))
    model._embeddings = told
    model.begin(seeded(2))
    with torch.no_grad():
        expected = plain(latents(), torch.tensor(500), told[LABELS]).sample
        assert torch.equal(model.predict(latents(), torch.tensor(500), LABELS), expected)
        for parameter in model.adapter.values():
            parameter.add_(0.1)
        assert not torch.equal(model.predict(latents(), torch.tensor(500), LABELS), expected)


def test_first_factors_are_normal_with_the_rank_as_scale_and_second_ones_zero(folder):
    model = load(folder, rank=8)
    model.begin(seeded(0))
    first, second = (
        torch.cat([one.detach().flatten() for name, one in model.adapter.items() if factor in name])
        for factor in ("lora_A", "lora_B")
    )
    assert not second.any()
    # Within 5 standard errors: a false alarm in 2 million seeds.
    assert float(first.std()) == pytest.approx(1 / 8, rel=5 / math.sqrt(2 * len(first)))
    assert abs(float(first.mean())) < 5 / 8 / math.sqrt(len(first))
    before = {name: one.clone() for name, one in model.adapter.items()}
    model.begin(seeded(0))
    assert all(torch.equal(one, before[name]) for name, one in model.adapter.items())


def test_every_attention_is_changed_and_nothing_else(model):
    changed = {name.rpartition(".lora_")[0] for name in model.adapter}
    attentions = [name for name, _ in model._unet.named_modules() if name.endswith(("attn1", "attn2"))]
    assert len(attentions) == 8
    assert changed == {f"{one}.{part}" for one in attentions for part in ("to_q", "to_k", "to_v", "to_out.0")}
    trained = {name.replace(".default.", ".") for name, one in model._unet.named_parameters() if one.requires_grad}
    assert trained == set(model.adapter)
    assert all(one.dtype == torch.float32 for one in model.adapter.values())


def test_version_1_5_has_as_many_changes_as_diffusers_script_says():
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).requires_grad_(False)
        weights = sum(one.numel() for one in unet.parameters())
        unet.add_adapter(LoraConfig(r=4, target_modules=ADAPTED))
    assert weights == 859_520_964
    assert sum(one.numel() for one in unet.parameters() if one.requires_grad) == 797_184


def test_diffusers_reads_the_changes_and_predicts_the_same(folder, model):
    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    theirs.load_lora_adapter({name: one.detach().clone() for name, one in model.adapter.items()}, prefix=None)
    with torch.no_grad():
        expected = theirs(latents(), torch.tensor(70), model._embeddings[LABELS]).sample
        torch.testing.assert_close(model.predict(latents(), torch.tensor(70), LABELS), expected)


def test_changes_are_scaled_and_refused_for_other_weights(folder, model, tmp_path):
    state = {name: one.detach().numpy() for name, one in model.adapter.items()} | {BASE: model.digest}
    full, half, none = load(folder), load(folder), load(folder)
    full.take(state)
    half.take(state, 0.5)
    none.take(state, 0.0)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    products = [one.adapter[f"{name}.lora_B.weight"] @ one.adapter[f"{name}.lora_A.weight"] for one in (full, half)]
    torch.testing.assert_close(products[1], 0.5 * products[0])
    untouched = load(folder)
    with torch.no_grad():
        ours, plain = (one.predict(latents(), torch.tensor(5), LABELS) for one in (none, untouched))
    assert torch.equal(ours, plain)
    other = load(tiny.save(tmp_path / "other", seed=1))
    with pytest.raises(CoalmineError, match=r"other are not those that were fine-tuned"):
        other.take(state)
    with pytest.raises(CoalmineError, match="not those that were fine-tuned"):
        load(folder, rank=2).take({BASE: model.digest})


# The loss


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weights_bound_the_weight_of_the_images_error(gamma):
    """With SNR = a^2 / s^2, an error d of the noise is one of d s/a of the image; one d of the velocity, of d s."""
    alpha = torch.linspace(0.01, 0.999, 50, dtype=torch.float64)
    snr = alpha / (1 - alpha)
    for predicts_noise in (True, False):
        weights = min_snr_weight(snr, gamma, predicts_noise=predicts_noise)
        for one, found in zip(alpha.tolist(), weights.tolist(), strict=True):
            ratio = one / (1 - one)
            error = math.sqrt(1 - one) / (math.sqrt(one) if predicts_noise else 1)
            assert found == pytest.approx(min(ratio, gamma) * error**2, rel=1e-9)
        assert torch.equal(min_snr_weight(snr, None, predicts_noise=predicts_noise), torch.ones_like(snr))


def test_the_loss_is_that_of_a_naive_loop():
    difference, weight = latents().double(), torch.tensor([0.2, 1.0, 0.7], dtype=torch.float64)
    expected, together = 0.0, np.zeros((4, 8, 8))
    for one, image in zip(weight.tolist(), difference.numpy(), strict=True):
        expected += one * sum(float(value) ** 2 for value in image.ravel()) / image.size / 3
        together += one * image
    assert float(weighted_error(difference, weight, 0)) == pytest.approx(expected, rel=1e-12)
    matched = expected + 0.003 * float(np.mean(together**2))
    assert float(weighted_error(difference, weight, 0.003)) == pytest.approx(matched, rel=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_zero_for_the_noise_or_the_velocity_and_for_nothing_else(prediction, tmp_path, monkeypatch):
    model = load(tiny.save(tmp_path / "model", prediction=prediction))
    z, noise, time = latents(0), latents(1), torch.tensor([10, 400, 900])
    alpha = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    a, s = (value.sqrt().float()[time][:, None, None, None] for value in (alpha, 1 - alpha))
    right = {"epsilon": noise, "v_prediction": a * noise - s * z}
    seen = []

    def predict(x, at, labels):
        seen.append(x)
        return right[prediction]

    monkeypatch.setattr(model, "predict", predict)
    assert float(model.loss(z, time, noise, LABELS)) < 1e-10
    torch.testing.assert_close(seen[0], a * z + s * noise)
    monkeypatch.setattr(model, "predict", lambda x, at, labels: right[prediction] + 1)
    snr = alpha[time] / (1 - alpha[time])
    expected = (snr.clamp(max=5) / (snr if prediction == "epsilon" else snr + 1)).mean()
    assert float(model.loss(z, time, noise, LABELS)) == pytest.approx(float(expected), rel=1e-4)


def test_a_model_that_predicts_something_else_is_refused(tmp_path):
    folder = tiny.save(tmp_path / "model", prediction="sample")
    with pytest.raises(CoalmineError, match="predicts sample, not the noise or the velocity"):
        load(folder)


# Drawing


def pipeline(folder: Path, model: StableDiffusion, kind: str, solver: str):
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(folder, safety_checker=None, feature_extractor=None)
    pipe.unet = model._unet
    pipe.scheduler = model._solver(solver)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    """The same model with the index that diffusers' pipelines want."""
    folder = tiny.save(tmp_path_factory.mktemp("tiny") / "listed")
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    tiny.change(folder / "model_index.json", **parts)
    return folder


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_images_from_noise_are_those_of_diffusers_pipeline(solver, guidance, listed, model):
    theirs = pipeline(listed, model, "StableDiffusionPipeline", solver)(
        [f"a photo of a {label}" for label in LABELS.tolist()],
        latents=latents(),
        num_inference_steps=6,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    own = LatentSampling(scheduler=solver, steps=6, guidance=guidance)
    torch.testing.assert_close(model.draw(LABELS, latents(), own), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver", "unipc"])
def test_images_from_images_are_those_of_diffusers_pipeline(solver, listed, model):
    z = latents(1)
    theirs = pipeline(listed, model, "StableDiffusionImg2ImgPipeline", solver)(
        [f"a photo of a {label}" for label in LABELS.tolist()],
        image=z,
        strength=0.5,
        generator=seeded(0),
        num_inference_steps=6,
        output_type="latent",
    ).images
    own = LatentSampling(scheduler=solver, steps=6)
    ours = model.draw(LABELS, latents(0), own, latents=z, strength=0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_denoiser_that_knows_the_image_leads_to_it(solver, strength, model, monkeypatch):
    z, noise = latents(1), latents(0)
    alphas = model._schedule.alphas_cumprod

    def predict(x, time, labels):
        return (x - alphas[time].sqrt() * z) / (1 - alphas[time]).sqrt()

    monkeypatch.setattr(model, "predict", predict)
    own = LatentSampling(scheduler=solver, steps=10, guidance=1)
    found = model.draw(LABELS, noise, own, latents=z, strength=strength)
    if strength == 1:  # starts from noise alone, which this denoiser takes for the image with a little less noise
        last = alphas[own.steps * 90 + 1]
        noise = (noise - last.sqrt() * z) / (1 - last).sqrt()
    # ddim and pndm end at the first time step of training, whose noise has a standard deviation of 0.03.
    left = 1 - alphas[0] if solver in ("ddim", "pndm") else torch.tensor(0.0)
    torch.testing.assert_close(found, (1 - left).sqrt() * z + left.sqrt() * noise, rtol=0, atol=2e-3)


def test_strength_is_the_share_of_steps_that_are_made(model, monkeypatch):
    visited = []
    monkeypatch.setattr(model, "predict", lambda x, time, labels: visited.append(int(time)) or x)
    for strength, steps in ((0.0, 0), (0.02, 0), (0.06, 1), (0.5, 5), (0.96, 10), (1.0, 10)):
        for solver in SOLVERS:
            visited.clear()
            own = LatentSampling(scheduler=solver, steps=10, guidance=1)
            model.draw(LABELS, latents(), own, latents=latents(1), strength=strength)
            assert len(set(visited)) == steps
            assert len(visited) == steps + (solver == "pndm" and steps > 1)


def test_no_strength_keeps_latents_and_full_strength_forgets_them(model):
    own = LatentSampling(steps=4)
    assert torch.equal(model.draw(LABELS, latents(0), own, latents=latents(1), strength=0), latents(1))
    forgotten = [model.draw(LABELS, latents(0), own, latents=latents(seed), strength=1) for seed in (1, 2)]
    assert torch.equal(*forgotten)
    assert torch.equal(forgotten[0], model.draw(LABELS, latents(0), own))
    near = model.draw(LABELS, latents(0), own, latents=latents(1), strength=0.99)
    assert not torch.equal(near, forgotten[0])


def test_guidance_goes_from_the_empty_prompt_through_the_classs(model):
    x, time = latents(), torch.tensor(300)
    with torch.no_grad():
        told, untold = (model.predict(x, time, labels) for labels in (LABELS, torch.full((3,), 10)))
        found = model._guided(x, time, LABELS, 3.0)
    assert not torch.allclose(told, untold)
    torch.testing.assert_close(found, untold + 3 * (told - untold))


def test_prompts_name_classes_and_the_last_one_is_empty(folder):
    own = settings(folder, prompt="a {}, drawn", names={"3": "three"})
    assert own.prompts(("1", "3")) == ("a 1, drawn", "a three, drawn", "")
    with pytest.raises(CoalmineError, match=r"names has '3', but the classes are 1, 2"):
        own.prompts(("1", "2"))
    told, named = load(folder)._embeddings, StableDiffusion(own, tiny.CLASSES, CPU)._embeddings
    assert told.shape == (11, tiny.TOKENS, 16)
    assert torch.equal(told[10], named[10])
    assert all(not torch.equal(told[one], told[other]) for one in range(11) for other in range(one))


# Images and latents


def test_grey_images_are_repeated_for_the_autoencoder_and_averaged_after_it(model):
    grey = torch.rand(2, 1, 8, 8, generator=seeded(0)) * 2 - 1
    ours = model.encode(grey).mode()
    assert ours.shape == (2, 4, 8, 8)
    assert torch.equal(ours, model.encode(grey.repeat(1, 3, 1, 1)).mode())
    z = model.scaled(ours)
    torch.testing.assert_close(z, 0.18215 * ours)
    colour = model.decode(z, (8, 8, 3))
    torch.testing.assert_close(model.decode(z, (8, 8, 1)), colour.mean(dim=1, keepdim=True))
    with torch.no_grad():
        rendered = model._vae.decode(ours).sample
    torch.testing.assert_close(colour, resized(rendered, (8, 8)), rtol=1e-4, atol=1e-5)


def test_shrinking_is_antialiased():
    """A pattern of single pixels becomes its mean, instead of the pixels that happen to be hit."""
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()[None, None]
    assert float((resized(board, (8, 8)) - 0.5).abs().max()) < 0.01
    image = torch.rand(1, 3, 8, 8, generator=seeded(0))
    assert torch.equal(resized(image, (8, 8)), image)
    constant = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(resized(constant, (512, 512)), torch.full((1, 1, 512, 512), 0.3))


def test_half_precision_changes_little(folder, model):
    half = load(folder, precision="bfloat16")
    half.take({name: one.detach().numpy() for name, one in model.adapter.items()} | {BASE: model.digest})
    own = LatentSampling(steps=4)
    with half.arithmetic():
        found = half.draw(LABELS, latents(), own)
    exact = model.draw(LABELS, latents(), own)
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).abs().mean() / exact.std()) < 0.05


# Models at hand and on the hub


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda at: (at / "model_index.json").unlink(), "has no model_index.json"),
        (lambda at: (at / "model_index.json").write_text("[]"), "names no pipeline"),
        (lambda at: tiny.change(at / "model_index.json", _class_name="StableDiffusionXLPipeline"), "XLPipeline, but"),
        (lambda at: (at / "scheduler").rename(at / "elsewhere"), "has no folder scheduler"),
        (
            lambda at: (at / "text_encoder/model.safetensors").rename(at / "text_encoder/pytorch_model.bin"),
            "has no text_encoder/model.safetensors; other formats can run code and are not read",
        ),
    ],
)
def test_a_folder_without_what_is_needed_is_refused_before_and_when_it_is_read(harm, told, tmp_path):
    folder = tiny.save(tmp_path / "model")
    assert latent_settings.objection(settings(folder)) is None
    harm(folder)
    field, reason = latent_settings.objection(settings(folder))
    assert field == "path"
    assert told in reason
    with pytest.raises(CoalmineError, match=r"The folder .*model ") as error:
        snapshot(settings(folder))
    assert told in str(error.value)


def test_weights_that_are_missing_in_a_file_are_not_made_up(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny.save(tmp_path / "model")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("decoder.conv_out.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(CoalmineError, match=r"vae lacks 1 weights, decoder\.conv_out\.weight first"):
        load(folder)
    file.write_bytes(b"cut off")
    with pytest.raises(CoalmineError, match="no Stable Diffusion that can be read"):
        load(folder)


def test_a_model_on_the_hub_is_fetched_once_at_its_commit_and_only_what_is_read(folder, monkeypatch):
    calls = []

    def download(name, **how):
        calls.append(how)
        if how["local_files_only"] and len(calls) == 1:
            raise FileNotFoundError("not in the cache")
        assert name == "owner/name"
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    own = LatentFit(hub="owner/name", revision=COMMIT, steps=1)
    assert snapshot(own) == folder
    assert [how["local_files_only"] for how in calls] == [True, False]
    assert all(how["revision"] == COMMIT for how in calls)
    patterns = calls[0]["allow_patterns"]
    assert "unet/*.safetensors" in patterns
    assert not [one for one in patterns if "safety" in one or one.endswith((".bin", ".ckpt", ".py", ".msgpack"))]
    assert snapshot(own) == folder
    assert calls[-1]["local_files_only"]


def test_a_model_that_cannot_be_fetched_is_told_with_the_remedy(monkeypatch, tmp_path):
    def offline(name, **how):
        raise FileNotFoundError("no network")

    own = LatentFit(hub="owner/name", revision=COMMIT, steps=1)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CoalmineError, match=r"owner/name at 0123.* cannot be fetched \(no network\).* set fit\.path"):
        snapshot(own)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: str(tmp_path))
    with pytest.raises(CoalmineError, match=r"has no model_index\.json"):
        snapshot(own)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "set either path"),
        ({"path": "a", "hub": "b/c", "revision": COMMIT}, "set either path"),
        ({"hub": "b/c"}, "belong together"),
        ({"path": "a", "revision": COMMIT}, "belong together"),
        ({"hub": "b", "revision": COMMIT}, "owner/name"),
        ({"hub": "b/c", "revision": "main"}, "40 hexadecimal digits"),
        ({"path": "a", "prompt": "a photo"}, "needs one {}"),
        ({"path": "a", "resolution": 500}, "multiple of 8"),
    ],
)
def test_settings_that_leave_the_model_open_are_refused(given, told):
    with pytest.raises(ValidationError, match=told):
        LatentFit(steps=1, **given)
