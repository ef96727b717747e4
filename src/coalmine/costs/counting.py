"""Counts loops around networks: what a method's ``work`` and every stage are made of. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

from pydantic import TypeAdapter

from coalmine.costs import networks
from coalmine.costs.networks import Network, lora_weights
from coalmine.costs.work import GRADIENT, StableDiffusion, Work
from coalmine.diffusion.settings import UNet
from coalmine.distillation.settings import Experts
from coalmine.models.settings import ModelSettings
from coalmine.provenance import canonical_json
from coalmine.training.recipe import Recipe

BYTES = 4
"""Of a float32."""

BYTES_A_TENSOR = 100
"""Of a file of weights, for its name, shape and place."""

LAYERS_HELD = 6
"""Outputs of the largest layer that a forward pass without gradients holds at once, copies for kernels included."""

STEP_LAUNCHES = 20
"""Calls of a training step beside those of the network: gathering, augmenting and normalising a batch, the loss."""

LAUNCHES_A_TENSOR = 3
"""Calls that update one tensor of weights: decay, velocity, step."""


class Scene(Protocol):
    """The data of a run, and the settings of stages that others depend on."""

    @property
    def population(self) -> float:
        """Private samples of a shadow model on average."""
        ...

    @property
    def private(self) -> float:
        """Private samples."""
        ...

    @property
    def test(self) -> float:
        """Test images."""
        ...

    @property
    def public(self) -> float:
        """Public images, 0 if there are none."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...

    @property
    def side(self) -> int:
        """Height and width of an image in pixels."""
        ...

    @property
    def audited(self) -> float:
        """Samples whose membership is asked for."""
        ...

    def spec(self, stage: str, name: str) -> dict[str, Any]:
        """Return the spec of another stage, of a method, of experts or of a pre-trained network."""
        ...

    def kind(self, method: str) -> str:
        """Return which function a method's file defines (``coalmine.plugins.Kind``)."""
        ...

    def shadows_of(self, method: str) -> int:
        """Return how many shadow models a method has."""
        ...


@dataclass(frozen=True)
class LoopCounter:
    """The counter of one stage's spec in a scene (``coalmine.costs.work.Counter``).

    Attributes:
        scene: of the run.
        of: the spec.
    """

    scene: Scene
    of: dict[str, Any]

    @property
    def population(self) -> float:
        """Private samples of a shadow model on average."""
        return self.scene.population

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.scene.classes

    @cached_property
    def model(self) -> Any:
        """The architecture of the spec."""
        return parsed(ModelSettings, self.of["model"]) if "model" in self.of else None

    @cached_property
    def recipe(self) -> Any:
        """The training recipe of the spec; what it leaves out, its method does not use."""
        return parsed(Recipe, self.of["training"]) if "training" in self.of else None

    @cached_property
    def teacher(self) -> Any:
        """The architecture of a data-free method's teacher."""
        return parsed(ModelSettings, self.of["teacher"]["model"]) if "teacher" in self.of else None

    def size(self, own: Any) -> Network:
        """Return the size of a network for the run's images."""
        return networks.network(own, self.scene.channels, self.scene.side, self.scene.classes)

    def looks(self, network: Any, images: float, *, at_once: int = 1024) -> Work:
        """Return the work of one forward pass over so many images."""
        net = self.size(network)
        batches = math.ceil(images / at_once)
        # Without gradients a layer's output is dropped once the next one is there.
        held = min(images, at_once) * LAYERS_HELD * net.largest
        return Work(net.operations * images, net.layers * batches, BYTES * (held + net.weights))

    def steps(
        self, network: Any, steps: float, batch: float, *, passes: float = GRADIENT, graphs: float = 1, copies: int = 1
    ) -> Work:
        """Return the work of so many steps on batches."""
        net = self.size(network)
        launches = passes * net.layers + LAUNCHES_A_TENSOR * net.tensors + STEP_LAUNCHES
        held = graphs * batch * net.activations * max(1.0, passes / GRADIENT) + 3 * net.weights * copies
        return Work(passes * net.operations * batch * steps, launches * steps, BYTES * held)

    def private_steps(self, network: Any, steps: float, batch: float, views: int, micro_batch: int) -> Work:
        """Return the work of differentially private steps, whose gradients are held example by example."""
        net = self.size(network)
        parts = math.ceil(batch / micro_batch)
        launches = parts * (GRADIENT * net.layers + 2 * LAUNCHES_A_TENSOR * net.tensors) + STEP_LAUNCHES
        examples = min(batch, micro_batch)
        held = examples * (views * net.activations + 2 * net.weights) + 3 * net.weights
        return Work(GRADIENT * net.operations * batch * views * steps, launches * steps, BYTES * held)

    def training(self, images: float, *, recipe: Any = None, epochs: float | None = None) -> Work:
        """Return the work of training the entry's classifier, by its own recipe unless another is given."""
        recipe = recipe or self.recipe
        batch = min(recipe.batch_size, images)
        steps = math.ceil((epochs or recipe.epochs) * images / batch)
        return self.steps(self.model, steps, batch)

    def image_set(self, images: float, *, soft: bool = False, floats: bool = False) -> Work:
        """Return a set of so many images as the result: with soft labels, with float32 pixels."""
        pixels = self.scene.side**2 * self.scene.channels * (BYTES if floats else 1)
        label = BYTES * self.scene.classes if soft else 8
        return Work(images=images, disk=images * (pixels + label + 8))  # 8: of `source`

    def weights(self, network: Any) -> Work:
        """Return a file of a network's weights and statistics as the result; of Stable Diffusion, its changes alone."""
        if isinstance(network, StableDiffusion):
            return Work(disk=BYTES * lora_weights(network.rank))
        net = self.size(network)
        return Work(disk=BYTES * (net.weights + net.statistics) + BYTES_A_TENSOR * net.tensors)

    def experts(self, name: str) -> Experts:
        """Return the settings of an entry of ``experts``."""
        found: Experts = parsed(Experts, self.scene.spec("experts", name)["settings"])
        return found

    def fitted(self) -> dict[str, Any]:
        """Return the block ``fit`` of the generative models that images are drawn from, as its spec has it."""
        made: dict[str, Any] = self.scene.spec("fit", self.of["generator"])["settings"]["fit"]
        return made

    def denoiser(self, own: Any) -> UNet:
        """Return the U-Net that a block ``fit`` trains: its own, or that of the pre-trained one it starts from."""
        block = own if isinstance(own, dict) else own.model_dump(mode="json")
        name = block.get("pretrained")
        source = self.scene.spec("pretrain_denoiser", name)["settings"] if name else block
        found: UNet = parsed(UNet, source["network"])
        return found


def parsed(kind: Any, block: dict[str, Any]) -> Any:
    """Return a block of a spec as its settings."""
    return _parsed(kind, canonical_json(block))


@lru_cache(maxsize=4096)
def _parsed(kind: Any, block: str) -> Any:
    return _adapter(kind).validate_json(block)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
