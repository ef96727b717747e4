"""What a private step costs: DP-SGD's update beside an ordinary one at the same number of forward views; its memory.

    python bench/private.py [--parts speed micro memory] [--device auto] [--threads 1] [--repeats 5] [--quick]
                            [--tasks NAME ...] [--allocator system] [--layout contiguous] [--json FILE]

An example is one image in K views. ``plain SGD`` is an ordinary update on one batch of batch x K views; every other way
takes the same examples. Ours is ``DPStep`` (per-example gradients, clipping, noise, update), and its per-example
gradients alone. For K = 1 opacus' own modes stand beside it; opacus has no augmentation multiplicity. Before a private
way is timed, its update without noise of a few examples is compared with a loop that clips the gradient of one example
after the other; a way that fails, or that refuses the network, is left out with a line that says why.

Every way runs in a process of its own, so that none meets memory that another has left behind: the C library's
allocator gives large blocks back to the system until it has seen blocks of that size freed, and fresh ones cost page
faults, which are counted. ``--allocator keep`` tells it to keep them. Ways take turns, so that a busy moment of the
machine does not fall on one of them alone; medians over the repeats are printed with the fastest and the slowest. On
one CPU thread the seconds are CPU seconds, which other programs disturb less; else they are wall time.

``micro`` times ``DPStep`` for several micro-batches, ``memory`` is the growth of resident memory during a step (on a
card: of allocated memory) in fresh processes. It follows the micro-batch, not the batch.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import opacus
import torch
from opacus.grad_sample import (
    AbstractGradSampleModule,
    GradSampleModule,
    GradSampleModuleExpandedWeights,
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from torch.nn import functional as F

from coalmine.models.build import build
from coalmine.models.settings import MLP, ModelSettings, ResNet, SmallNet, WideResNet
from coalmine.training.device import device_name, resolve_device
from coalmine.training.dp_step import DPStep, per_example_gradients
from coalmine.training.private import mean_cross_entropy

CLASSES, LEARNING_RATE, MOMENTUM, CLIP = 10, 0.01, 0.9, 1.0
CHECKED_EXAMPLES = 6
PLAIN, GRADIENTS, OURS = "plain SGD", "our gradients alone", "our DPStep"
TURN_SECONDS = 0.3
"""A turn makes as many updates as fit in, at least one."""

Step = Callable[[], None]
PARTS = ("speed", "micro", "memory")


@dataclass(frozen=True)
class Task:
    """A network, images for it, and what is measured on them.

    Attributes:
        name: what it is called.
        model: the network.
        channels: of the images.
        image_size: in pixels.
        batch: examples of a step.
        micro_batch: examples whose gradients are held at once, for each number of views.
        micro_batches: those compared in ``micro``.
        layout: of the images in memory.
    """

    name: str
    model: ModelSettings
    channels: int
    image_size: int
    batch: int
    micro_batch: dict[int, int]
    micro_batches: tuple[int, ...]
    layout: str = "contiguous"

    def __str__(self) -> str:
        """Return what is printed."""
        return f"{self.name}, {self.weights():,} weights, {self.channels}x{self.image_size}x{self.image_size} images"

    def weights(self) -> int:
        """Return the number of the network's weights."""
        return sum(parameter.numel() for parameter in self.network(torch.device("cpu")).parameters())

    def network(self, device: torch.device) -> nn.Module:
        """Return the network, with the same weights each time."""
        generator = torch.Generator().manual_seed(0)
        return build(self.model, self.channels, self.image_size, CLASSES, generator).to(device)

    def examples(self, n: int, views: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return random images ``(n, view, channel, height, width)`` with labels ``(n,)``."""
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(n, views, self.channels, self.image_size, self.image_size, generator=generator)
        labels = torch.randint(CLASSES, (n,), generator=generator)
        if self.layout == "channels-last":
            images = images.movedim(2, -1).contiguous().movedim(-1, 2)
        return images.to(device), labels.to(device)


GREY = {"channels": 1, "image_size": 8, "batch": 256, "micro_batches": (16, 32, 64, 128, 256)}
COLOUR = {"channels": 3, "image_size": 32, "batch": 64, "micro_batches": (4, 8, 16, 32, 64)}
TASKS = [
    Task(
        "cnn 16-32-64",
        SmallNet(norm="group", width=16, hidden=64),
        micro_batch={1: 256, 4: 256, 8: 128, 16: 64},
        **GREY,
    ),
    Task("cnn 32-64-192", SmallNet(norm="group"), micro_batch={1: 256, 4: 128, 8: 128, 16: 64}, **GREY),
    Task("mlp 64", MLP(hidden=(64,)), micro_batch={1: 256, 8: 256, 16: 256}, **GREY),
    Task(
        "resnet 16-32-64", ResNet(width=16, blocks=(1, 1, 1), norm="group"), micro_batch={1: 64, 4: 16, 8: 16}, **COLOUR
    ),
    Task("wrn-16-1", WideResNet(depth=16, widen=1, norm="group"), micro_batch={1: 32, 4: 16, 8: 8}, **COLOUR),
]


@dataclass(frozen=True)
class Job:
    """One way, for one task, number of views and micro-batch."""

    task: Task
    way: str
    batch: int
    views: int
    micro_batch: int
    device: torch.device

    def prepare(self) -> Step:
        """Return a function that makes one update, after checking that it is the right one.

        Raises:
            WrongUpdateError: if it is not.
        """
        network = self.task.network(self.device)
        if self.way == PLAIN:
            return plain(network, *self.examples(self.batch))
        if self.way == GRADIENTS:
            return gradients_alone(network, *self.examples(self.batch), self.micro_batch)
        self.check()
        return WAYS[self.way](network, *self.examples(self.batch), self.micro_batch, 1.0)

    def examples(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``n`` of the task's examples."""
        return self.task.examples(n, self.views, self.device)

    def check(self) -> None:
        """Compare an update without noise, in two micro-batches and float64, with the definition."""
        expected, network = self.task.network(self.device).double(), self.task.network(self.device).double()
        images, labels = self.examples(CHECKED_EXAMPLES)
        images = images.double()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        update_by_definition(expected, images, labels)
        WAYS[self.way](network, images, labels, CHECKED_EXAMPLES // 2 + 1, 0.0)()
        wrong = []
        for (name, has), wanted, old in zip(network.named_parameters(), expected.parameters(), before, strict=True):
            error = (has - wanted).norm() / (wanted - old).norm()
            if not error < 1e-4:  # opacus adds 1e-6 to norms
                wrong.append(f"{name} ({error:.0%})")
        if wrong:
            raise WrongUpdateError(f"wrong update of {len(wrong)} of {len(before)} parameters: {', '.join(wrong[:3])}")


class WrongUpdateError(Exception):
    """A way does not compute DP-SGD's update."""


def update_by_definition(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Make DP-SGD's update without noise, one example after the other."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for views, label in zip(images, labels, strict=True):
        gradients = torch.autograd.grad(mean_cross_entropy(network, views, label), parameters)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        torch._foreach_add_(total, gradients, alpha=min(1.0, CLIP / float(norm)))
    with torch.no_grad():
        torch._foreach_add_(parameters, total, alpha=-LEARNING_RATE / len(images))


def sgd(network: nn.Module, rate: float = LEARNING_RATE) -> torch.optim.SGD:
    """Return the optimiser of every way."""
    return torch.optim.SGD(network.parameters(), rate, MOMENTUM)


def noise(device: torch.device) -> torch.Generator:
    """Return the generator of the noise."""
    return torch.Generator(device).manual_seed(2)


def plain(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """Ordinary SGD on all views as one batch."""
    optimiser = sgd(network)
    views, labels = images.flatten(0, 1), labels.repeat_interleave(images.shape[1])

    def step() -> None:
        F.cross_entropy(network(views), labels).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def gradients_alone(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, micro_batch: int) -> Step:
    """Our per-example gradients, dropped."""
    gradients = per_example_gradients(network, mean_cross_entropy)

    def step() -> None:
        for part in zip(images.split(micro_batch), labels.split(micro_batch), strict=True):
            gradients(*part)

    return step


def ours(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, micro_batch: int, noise_multiplier: float
) -> Step:
    """The update that Coalmine makes."""
    update = DPStep(
        network,
        mean_cross_entropy,
        sgd(network),
        clip=CLIP,
        noise_multiplier=noise_multiplier,
        expected_batch_size=len(images),
        generator=noise(images.device),
        micro_batch=micro_batch,
    )
    return lambda: update(images, labels)


def opacus_gradients(wrap: Callable[[nn.Module], AbstractGradSampleModule]) -> Callable[..., Step]:
    """Return a way that takes per-example gradients from one of opacus' modules."""

    def way(
        network: nn.Module, images: torch.Tensor, labels: torch.Tensor, micro_batch: int, noise_multiplier: float
    ) -> Step:
        module = wrap(network)
        optimiser = DPOptimizer(
            sgd(network),
            noise_multiplier=noise_multiplier,
            max_grad_norm=CLIP,
            expected_batch_size=len(images),
            generator=noise(images.device),
        )

        def step() -> None:
            for x, y, more in parts(images, labels, micro_batch):
                F.cross_entropy(module(x), y, reduction="sum").backward()
                optimiser.signal_skip_step(more)
                optimiser.step()
                optimiser.zero_grad()

        return step

    return way


def opacus_ghost(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, micro_batch: int, noise_multiplier: float
) -> Step:
    """Ghost clipping: norms without gradients where opacus can, then a second backward pass of the scaled losses."""
    module = GradSampleModuleFastGradientClipping(network, max_grad_norm=CLIP, loss_reduction="sum")
    optimiser = DPOptimizerFastGradientClipping(
        sgd(network, LEARNING_RATE / len(images)),  # this mode wants one reduction everywhere: a sum
        noise_multiplier=noise_multiplier,
        max_grad_norm=CLIP,
        expected_batch_size=len(images),
        loss_reduction="sum",
        generator=noise(images.device),
    )
    loss = DPLossFastGradientClipping(module, optimiser, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum")

    def step() -> None:
        for x, y, more in parts(images, labels, micro_batch):
            loss(module(x), y).backward()
            optimiser.signal_skip_step(more)
            optimiser.step()
            optimiser.zero_grad()

    return step


def parts(
    images: torch.Tensor, labels: torch.Tensor, micro_batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
    """Yield the micro-batches of the only view, and whether more follow."""
    (count,) = {len(images), len(labels)}
    for start in range(0, count, micro_batch):
        end = start + micro_batch
        yield images[start:end, 0], labels[start:end], end < count


OPACUS: dict[str, Callable[..., Step]] = {
    "opacus hooks": opacus_gradients(lambda net: GradSampleModule(net, loss_reduction="sum")),
    "opacus functorch": opacus_gradients(lambda net: GradSampleModule(net, loss_reduction="sum", force_functorch=True)),
    "opacus expanded weights": opacus_gradients(lambda net: GradSampleModuleExpandedWeights(net, loss_reduction="sum")),
    "opacus ghost clipping": opacus_ghost,
}
WAYS: dict[str, Callable[..., Step]] = {OURS: ours, **OPACUS}
"""``way(network, images, labels, micro_batch, noise_multiplier)``: a function that makes one private update."""


@dataclass(frozen=True)
class Conditions:
    """How all processes measure."""

    device: torch.device
    threads: int
    allocator: str

    @property
    def cpu_seconds(self) -> bool:
        """Whether time is this process's CPU time."""
        return self.device.type == "cpu" and self.threads == 1

    def enter(self) -> None:
        """Set up this process."""
        warnings.simplefilter("ignore")  # opacus' hooks warn of what does not concern them here
        torch.set_num_threads(self.threads)
        if self.allocator == "keep":
            m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1
            libc = ctypes.CDLL(None)
            if not (libc.mallopt(m_trim_threshold, most) and libc.mallopt(m_mmap_threshold, most)):
                raise SystemExit("this C library cannot be told to keep freed memory; use --allocator system")

    def clock(self) -> float:
        """Return the time in seconds at which the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.cpu_seconds else time.perf_counter()

    def context(self) -> Any:
        """Return how processes are started: forked, but on a card anew."""
        return multiprocessing.get_context("spawn" if self.device.type == "cuda" else "fork")


class Worker:
    """A process of its own that takes the turns of one way."""

    def __init__(self, job: Job, conditions: Conditions) -> None:
        """Start it and wait until it is warm; ``problem`` is then None, or why it will not run."""
        context = conditions.context()
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=serve, args=(far, job, conditions), daemon=True)
        self._process.start()
        far.close()
        self.problem: str | None = self._receive()

    def turn(self) -> tuple[float, float]:
        """Return a step's seconds and its page faults."""
        self._pipe.send(True)
        answer: tuple[float, float] = self._receive()
        return answer

    def end(self) -> None:
        """Stop the process, if it has not stopped by itself."""
        with suppress(BrokenPipeError):
            self._pipe.send(False)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"a measuring process ended with exit code {self._process.exitcode}") from None


def serve(pipe: Connection, job: Job, conditions: Conditions) -> None:
    """Take turns as told."""
    conditions.enter()
    try:
        step = job.prepare()
        step()
    except WrongUpdateError as error:
        pipe.send(str(error))
        return
    except Exception as error:  # whatever a library raises for a network that it does not know
        reason = (str(error).strip().splitlines() or [""])[0]
        pipe.send(f"refuses: {type(error).__name__}: {reason}"[:150])
        return
    start = conditions.clock()
    step()
    steps = max(1, math.ceil(TURN_SECONDS / max(conditions.clock() - start, 1e-6)))
    pipe.send(None)
    while pipe.recv():
        start, faults = conditions.clock(), page_faults()
        for _ in range(steps):
            step()
        pipe.send(((conditions.clock() - start) / steps, (page_faults() - faults) / steps))


def page_faults() -> int:
    """Return how many pages this process has been given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(jobs: dict[str, Job], conditions: Conditions, repeats: int) -> dict[str, dict[str, Any]]:
    """Return each way's seconds and page faults of a step, one value a repeat, or its problem."""
    workers = {name: Worker(job, conditions) for name, job in jobs.items()}
    able = {name: worker for name, worker in workers.items() if worker.problem is None}
    results: dict[str, dict[str, Any]] = {
        name: {"problem": worker.problem} if worker.problem else {"seconds": [], "page_faults": []}
        for name, worker in workers.items()
    }
    for _ in range(repeats):
        for name, worker in able.items():
            seconds, faults = worker.turn()
            results[name]["seconds"].append(seconds)
            results[name]["page_faults"].append(faults)
    for worker in workers.values():
        worker.end()
    return results


def print_table(results: dict[str, dict[str, Any]], batch: int) -> None:
    """Print one line a way; the first is plain SGD, what the others are compared with."""
    plain_seconds = statistics.median(results[PLAIN]["seconds"])
    for name, result in results.items():
        if "problem" in result:
            print(f"    {name:24}  {result['problem']}")
            continue
        median = statistics.median(result["seconds"])
        fastest, slowest = 1e3 * min(result["seconds"]), 1e3 * max(result["seconds"])
        spread = f"({fastest:,.2f} to {slowest:,.2f})"
        print(
            f"    {name:24}{1e3 * median:9,.2f} ms  {spread:24}{batch / median:10,.0f} examples/s"
            f"{median / plain_seconds:7.2f}x  {statistics.median(result['page_faults']):8,.0f} page faults"
        )


def measure_speed(task: Task, conditions: Conditions, repeats: int, quick: bool) -> dict[str, Any]:
    """Compare the ways for each number of views."""
    found: dict[str, Any] = {}
    for views, micro_batch in list(task.micro_batch.items())[: 2 if quick else None]:
        ways = [PLAIN, GRADIENTS, OURS, *(OPACUS if views == 1 else ())]
        base = Job(task, PLAIN, task.batch, views, min(micro_batch, task.batch), conditions.device)
        results = measure({way: replace(base, way=way) for way in ways}, conditions, repeats)
        print(f"\n  K = {views}, batch {task.batch}, micro-batch {base.micro_batch}; ratio to plain SGD")
        print_table(results, task.batch)
        found[str(views)] = {"batch": task.batch, "micro_batch": base.micro_batch, "ways": results}
    return found


def measure_micro_batches(task: Task, conditions: Conditions, repeats: int) -> dict[str, Any]:
    """Compare micro-batches for one view and for several."""
    found: dict[str, Any] = {}
    for views in (1, 8) if 8 in task.micro_batch else (1,):
        base = Job(task, OURS, task.batch, views, 0, conditions.device)
        jobs = {PLAIN: replace(base, way=PLAIN)} | {
            f"DPStep, micro-batch {size}": replace(base, micro_batch=size)
            for size in task.micro_batches
            if size <= task.batch
        }
        results = measure(jobs, conditions, repeats)
        print(f"\n  K = {views}, batch {task.batch}; ratio to plain SGD")
        print_table(results, task.batch)
        found[str(views)] = {"batch": task.batch, "ways": results}
    return found


def measure_memory(conditions: Conditions, repeats: int, quick: bool) -> dict[str, Any]:
    """Measure the growth of memory for several batches and micro-batches."""
    task, views = TASKS[1], 1
    batches, micro_batches = ((64, 256), (16, 64)) if quick else ((256, 1024, 4096), (16, 64, 256))
    pixels = views * task.channels * task.image_size**2
    print(f"\nmemory of a step in MiB: {task}, K = {views}")
    print("   batch   its inputs   micro-batch   its per-example gradients   growth, median (least to most)")
    found = []
    with conditions.context().Pool(1, maxtasksperchild=1) as pool:
        for batch in batches:
            for micro_batch in micro_batches:
                job = Job(task, OURS, batch, views, micro_batch, conditions.device)
                growth = [pool.apply(memory_growth, (job, conditions)) for _ in range(repeats)]
                inputs, gradients = 4 * batch * pixels, 4 * micro_batch * task.weights()
                print(
                    f"  {batch:6,}{mib(inputs):>13}{micro_batch:14}{mib(gradients):>28}"
                    f"{mib(statistics.median(growth)):>9} ({mib(min(growth))} to {mib(max(growth))})"
                )
                sizes = {"batch": batch, "micro_batch": micro_batch, "input_bytes": inputs, "gradient_bytes": gradients}
                found.append({**sizes, "growth_bytes": growth})
    return {"task": task.name, "weights": task.weights(), "views": views, "grid": found}


def mib(size: float) -> str:
    """Return a size in bytes in MiB."""
    return f"{size / 2**20:.1f}"


def memory_growth(job: Job, conditions: Conditions) -> int:
    """Return how many bytes more than before a step this process has held during it, its inputs not counted."""
    conditions.enter()
    replace(job, batch=2, micro_batch=1).prepare()()  # what is allocated once: kernels, buffers, caches
    step = job.prepare()
    with peak_of(conditions.device) as growth:
        step()
    return growth[0]


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[int]]:
    """Fill in the bytes by which memory has grown at most."""
    growth: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield growth
        growth.append(torch.cuda.max_memory_allocated(device) - before)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak, VmHWM
    except OSError as error:
        raise SystemExit(f"the memory of a step can be measured on Linux only ({error})") from error
    before = status_bytes("VmRSS")
    yield growth
    growth.append(status_bytes("VmHWM") - before)


def status_bytes(field: str) -> int:
    """Return a size from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--tasks", nargs="+", default=[""], help="only networks whose names contain one of these")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each way")
    parser.add_argument("--quick", action="store_true", help="small batches, few views, two repeats: does it run?")
    parser.add_argument("--allocator", choices=("system", "keep"), default="system", help="of CPU memory")
    parser.add_argument("--layout", choices=("contiguous", "channels-last"), default="contiguous", help="of the images")
    parser.add_argument("--json", type=Path, help="save all values here")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and print."""
    arguments = parse()
    device = resolve_device(arguments.device)
    conditions = Conditions(device, arguments.threads, arguments.allocator)
    torch.set_num_threads(arguments.threads)
    repeats = 2 if arguments.quick else arguments.repeats
    chosen = [task for task in TASKS if any(part in task.name for part in arguments.tasks)]
    chosen = [replace(task, layout=arguments.layout) for task in chosen]
    if arguments.quick:
        chosen = [replace(task, batch=task.batch // 8, micro_batches=task.micro_batches[:2]) for task in chosen]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "opacus": opacus.__version__}
    seconds = "CPU seconds" if conditions.cpu_seconds else "wall seconds"
    facts = {"device": device_name(device), "threads": arguments.threads, "seconds": seconds, "versions": versions}
    print(f"{facts['device']}, {arguments.threads} thread(s), {seconds}, {', '.join(map(' '.join, versions.items()))}")
    print(f"allocator: {arguments.allocator}, images: {arguments.layout}, median of {repeats} (fastest to slowest)")
    results: dict[str, Any] = {
        **facts,
        "allocator": arguments.allocator,
        "layout": arguments.layout,
        "repeats": repeats,
    }
    for part, function in (("speed", measure_speed), ("micro", measure_micro_batches)):
        if part in arguments.parts:
            results[part] = {}
            for task in chosen:
                print(f"\n{part}: {task}")
                extra = (arguments.quick,) if part == "speed" else ()
                results[part][task.name] = function(task, conditions, repeats, *extra)
    if "memory" in arguments.parts:
        results["memory"] = measure_memory(conditions, min(repeats, 3), arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
