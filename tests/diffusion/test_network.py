"""The U-Net: labels, seeds, independence of examples, pre-trained weights and low-rank changes."""

from __future__ import annotations

import pytest
import torch
from denoisers import ATTENTIVE, TINY, flat, generator, unet
from torch import nn

from coalmine.diffusion.network import ConditionalUNet, adapt, merged
from coalmine.diffusion.settings import LoRA, UNet

CLASSES = "unet.class_embedding.weight"
BOTH = pytest.mark.parametrize("own", [TINY, ATTENTIVE], ids=["group norm", "attention"])


def inputs(n: int = 4, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(n, channels, 4, 4, generator=generator(5))
    return x, torch.linspace(-1, 1, n), torch.arange(n) % 4


def adapted(own: LoRA, trained: bool = False, seed: int = 1) -> nn.Module:
    """A network with low-rank changes, at random where they are 0 at first if it is to pass for a trained one."""
    network = adapt(unet(ATTENTIVE), own, generator(seed))
    for name, parameter in network.named_parameters():
        if trained and "lora_B" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator(7))
    return network


# --- the network -----------------------------------------------------------------------------------------------------


@BOTH
def test_every_class_and_no_class_has_an_answer_of_its_own(own: UNet) -> None:
    network = unet(own)
    x, time, _ = inputs()
    answers = [network(x, time, torch.full((4,), label)) for label in range(4)]
    assert network.no_class == 3
    assert all(not torch.allclose(one, other) for i, one in enumerate(answers) for other in answers[:i])
    with pytest.raises(IndexError):
        network(x, time, torch.full((4,), 4))


@BOTH
def test_the_noise_level_matters(own: UNet) -> None:
    network = unet(own)
    x, time, labels = inputs()
    assert not torch.allclose(network(x, time, labels), network(x, time + 0.1, labels))


@BOTH
def test_a_row_of_a_batch_is_a_batch_of_one(own: UNet) -> None:
    network = unet(own, double=True)
    x, time, labels = (one.double() if one.is_floating_point() else one for one in inputs())
    whole = network(x, time, labels)
    for row in range(4):
        alone = network(x[[row]], time[[row]], labels[[row]])
        torch.testing.assert_close(alone, whole[[row]], rtol=1e-5, atol=1e-9)


@BOTH
def test_other_rows_of_a_batch_change_nothing(own: UNet) -> None:
    network = unet(own)
    x, time, labels = inputs()
    before = network(x, time, labels)
    x[2:], time[2:], labels[2:] = 100 * x[2:], 3.0, 1
    after = network(x, time, labels)
    assert torch.equal(after[:2], before[:2])
    assert not torch.allclose(after[2:], before[2:])


def test_channels_go_in_and_come_out() -> None:
    x, time, labels = inputs(channels=3)
    assert unet(ATTENTIVE, channels=3)(x, time, labels).shape == x.shape


def test_a_network_has_the_blocks_that_its_settings_say() -> None:
    own = UNet(width=8, multipliers=(1, 2, 3), blocks=2, attention=(1,), dropout=0.25)
    network = unet(own)
    attending = {name for name, layer in network.named_modules() if hasattr(layer, "heads")}
    places = {name.removeprefix("unet.").rpartition(".attentions")[0] for name in attending}
    assert places == {"down_blocks.1", "mid_block", "up_blocks.1"}
    widths = [block.resnets[-1].conv2.out_channels for block in network.unet.down_blocks]
    assert widths == [8, 16, 24]
    assert all(len(block.resnets) == 2 for block in network.unet.down_blocks)
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout)} >= {0.25}
    deep = unet(own.model_copy(update={"attention": (0, 2)})).unet
    assert [hasattr(block, "attentions") for block in deep.down_blocks] == [True, False, True]
    assert [hasattr(block, "attentions") for block in deep.up_blocks] == [True, False, True]
    shallow = unet(own.model_copy(update={"attention": (0,)})).unet
    assert [hasattr(block, "attentions") for block in shallow.up_blocks] == [False, False, True]
    assert not any(hasattr(layer, "heads") for layer in unet(TINY).modules())


@pytest.mark.parametrize(("width", "heads"), [(4, 1), (8, 1), (12, 3), (16, 2)])
def test_attention_looks_at_all_channels_whatever_the_width(width: int, heads: int) -> None:
    network = unet(UNet(width=width, multipliers=(1,), blocks=1, attention=(0,)))
    assert network(*inputs()).isfinite().all()
    layers = [layer for layer in network.modules() if hasattr(layer, "heads")]
    assert {(layer.heads, layer.inner_dim) for layer in layers} == {(heads, width)}


def test_group_norm_has_groups_of_two_channels_or_more() -> None:
    for width in (4, 8, 12, 128):
        network = unet(UNet(width=width, multipliers=(1, 2), blocks=1), size=4)
        norms = [layer for layer in network.modules() if isinstance(layer, nn.GroupNorm)]
        assert all(layer.num_channels >= 2 * layer.num_groups > 2 for layer in norms)


# --- randomness ------------------------------------------------------------------------------------------------------


def test_first_weights_come_from_the_generator_and_nothing_else() -> None:
    torch.manual_seed(3)
    one = flat(unet(ATTENTIVE, seed=5).parameters())
    torch.manual_seed(4)
    assert torch.equal(flat(unet(ATTENTIVE, seed=5).parameters()), one)
    assert not torch.equal(flat(unet(ATTENTIVE, seed=6).parameters()), one)
    source = generator(5)
    networks = [ConditionalUNet(TINY, 1, 4, 3, source) for _ in range(2)]
    assert not torch.equal(*(flat(network.parameters()) for network in networks)), "the generator moves on"


def test_first_weights_of_low_rank_changes_come_from_their_generator_and_nothing_else() -> None:
    def first(seed: int) -> torch.Tensor:
        network = adapted(LoRA(rank=2), seed=seed)
        return flat(one for name, one in network.named_parameters() if "lora_A" in name)

    torch.manual_seed(3)
    one = first(5)
    torch.manual_seed(4)
    assert torch.equal(first(5), one)
    assert not torch.equal(first(6), one)


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    network = unet(TINY)
    ConditionalUNet(TINY, 1, 4, 3)
    adapt(network, LoRA(rank=1), generator())
    assert torch.equal(torch.get_rng_state(), state)


# --- pre-trained weights ---------------------------------------------------------------------------------------------


def test_kept_classes_are_those_of_the_pretrained_network() -> None:
    public, private = unet(TINY, seed=1), unet(TINY, seed=2)
    private.take(public.state_dict(), keep_classes=True)
    assert all(torch.equal(one, public.state_dict()[name]) for name, one in private.state_dict().items())


def test_new_classes_are_random_ones_and_all_else_is_taken_no_class_included() -> None:
    public, private = unet(TINY, seed=1, classes=5), unet(TINY, seed=2, classes=3)
    own, theirs = private.state_dict()[CLASSES].clone(), public.state_dict()
    private.take(theirs, keep_classes=False)
    taken = private.state_dict()
    assert all(torch.equal(one, theirs[name]) for name, one in taken.items() if name != CLASSES)
    assert torch.equal(taken[CLASSES][:3], own[:3])
    assert torch.equal(taken[CLASSES][3], theirs[CLASSES][5]), "no class is the last of each"
    x, time, _ = inputs()
    assert torch.equal(private(x, time, torch.full((4,), 3)), public(x, time, torch.full((4,), 5)))
    assert flat(public.parameters()).equal(flat(unet(TINY, seed=1, classes=5).parameters())), "left as it was"


def test_classes_of_another_number_cannot_be_kept() -> None:
    with pytest.raises(RuntimeError, match="class_embedding"):
        unet(TINY, classes=3).take(unet(TINY, classes=5).state_dict(), keep_classes=True)


# --- low-rank changes ------------------------------------------------------------------------------------------------


def test_low_rank_changes_start_at_nothing() -> None:
    x, time, labels = inputs()
    torch.testing.assert_close(adapted(LoRA(rank=2))(x, time, labels), unet(ATTENTIVE)(x, time, labels))
    assert not torch.allclose(adapted(LoRA(rank=2), trained=True)(x, time, labels), unet(ATTENTIVE)(x, time, labels))


def test_only_low_rank_changes_and_the_classes_are_trained() -> None:
    network = adapted(LoRA(rank=2))
    trained = {name for name, one in network.named_parameters() if one.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {f"base_model.model.{CLASSES}"}
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.unet.") for name in trained if "lora" in name}
    plain = dict(unet(ATTENTIVE).unet.named_modules())
    expected = {
        name
        for name in plain
        if name.rpartition(".")[2] in ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "to_q", "to_k", "to_v")
        or name.endswith("to_out.0")
    }
    assert layers == expected
    assert any("attentions" in name for name in layers)
    assert any("conv_shortcut" in name for name in layers)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_low_rank_changes_are_products_of_two_factors_times_the_scale(scale: float) -> None:
    network = adapted(LoRA(rank=2, scale=scale), trained=True)
    before = unet(ATTENTIVE).state_dict()
    factors = {name.removeprefix("base_model.model."): one.detach() for name, one in network.named_parameters()}
    after = merged(network).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name.replace(".lora_A.default", "") for name in factors if "lora_A" in name}
    for name in changed:
        first, second = (factors[name.replace("weight", f"lora_{one}.default.weight")] for one in "AB")
        # Of a convolution: one with `rank` channels, then one of single pixels.
        product = torch.einsum("or,ri...->oi...", second.flatten(1), first)
        assert min(first.shape[0], second.shape[1]) == 2
        torch.testing.assert_close(after[name] - before[name], scale * product, rtol=1e-3, atol=1e-5)


def test_merging_changes_no_answer_and_leaves_a_plain_network() -> None:
    network = adapted(LoRA(rank=3, scale=0.7), trained=True)
    expected = network(*inputs())
    plain = merged(network)
    assert plain.state_dict().keys() == unet(ATTENTIVE).state_dict().keys()
    torch.testing.assert_close(plain(*inputs()), expected, rtol=1e-4, atol=1e-4)
    again = unet(ATTENTIVE, seed=9)
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(*inputs()), expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_low_rank_changes_is_itself_when_merged() -> None:
    network = unet(TINY)
    assert merged(network) is network


def test_the_last_row_of_the_class_embedding_is_no_class() -> None:
    network, swapped, (x, time, _) = unet(TINY), unet(TINY), inputs()
    with torch.no_grad():
        swapped.state_dict()[CLASSES].copy_(network.state_dict()[CLASSES][[3, 1, 2, 0]])
    of_none = torch.full((4,), network.no_class)
    assert torch.equal(network(x, time, of_none), swapped(x, time, torch.zeros(4).long()))
