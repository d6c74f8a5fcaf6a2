# SPDX-License-Identifier: Apache-2.0
"""How the networks of a run lie on its processes, and what a step has to do about it; read `ddp.py` and `fsdp.py`."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import nn
from torch.optim import Optimizer

from opendino.distributed import world_size
from opendino.errors import ConfigError
from opendino.parallel.compile import Mode, begin_step, compile_blocks
from opendino.parallel.ddp import average_gradients
from opendino.parallel.recompute import Recompute, recompute_blocks

LARGE = 200_000_000
"""Trained parameters from which on `parallel.mode = auto` shares them out among CUDA devices."""


@dataclass(frozen=True)
class ParallelConfig:
    """How processes share the work, and what is given for speed or memory; none of it changes what is learned.

    Attributes:
        mode: "ddp" keeps the whole networks on every process, "fsdp" a share of them; "auto" takes "none" for one
            process, "fsdp" for large networks on several CUDA devices, else "ddp".
        compile: let torch.compile make one kernel after the other of each block, and of heads where masked patches
            are filled up (`masks.pad`).
        compile_mode: of torch.compile, for blocks. "reduce-overhead" replays each block as one CUDA graph, for models
            so small that a GPU waits for the CPU; it takes memory, and needs parameters that stay where they are, so
            no "fsdp". "max-autotune-no-cudagraphs" tries out more kernels, for minutes.
        recompute: what of a student's block is computed again in the backward pass and not kept: nothing, all, or
            all but matrix products and attention.
        ahead: on a GPU hand over the next step before the figures of this one are read, and let the device leave out
            what is not finite; without it each step is waited for.
    """

    mode: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    compile: bool = False
    compile_mode: Mode = "default"
    recompute: Recompute = "none"
    ahead: bool = True

    def __post_init__(self) -> None:
        if self.compile_mode != "default" and not self.compile:
            raise ConfigError(
                f"parallel.compile_mode = {self.compile_mode}, but nothing is compiled; add parallel.compile=true"
            )
        _check_graphs(self.compile_mode, self.mode)


if TYPE_CHECKING:

    class Method(Protocol):
        """What is asked of a method; see `methods/method.py`."""

        student: nn.ModuleDict
        teacher: nn.ModuleDict

else:
    Method = nn.Module  # from Python 3.12 on, a protocol does not see the parts of a module at run time


class Layout:
    """The networks of a method as they lie on the processes.

    Attributes:
        mode: "none", "ddp" or "fsdp".
    """

    def __init__(self, mode: str = "none", empty: nn.ModuleDict | None = None, graphs: bool = False) -> None:
        self.mode, self._empty, self._graphs = mode, empty, graphs

    def begin_step(self) -> None:
        """Before the first pass of a step, when no gradient of the last one is held any more."""
        if self._graphs:
            begin_step()

    def reduce(self, student: nn.Module) -> None:
        """After the backward pass: make the gradients those of the batch of all processes."""
        if self.mode == "ddp":
            average_gradients(student.parameters())

    def plain(self, method: Method, parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Parts of a method's teacher as plain modules with all parameters; every process calls it.

        They are copies where the teacher is shared out or compiled, else the parts themselves.

        Args:
            method: whose teacher it is.
            parts: modules inside of it, by any name.
        """
        if self._empty is None:
            return dict(parts)
        from opendino.parallel.fsdp import gather

        places = {id(module): place for place, module in method.teacher.named_modules()}
        copied = gather(method.teacher, self._empty)
        return {name: copied.get_submodule(places[id(part)]) for name, part in parts.items()}

    @contextlib.contextmanager
    def whole_teacher(self, method: Method) -> Iterator[None]:
        """Let a method have its teacher with all parameters and as a plain module; every process calls it.

        It is a copy where the teacher is shared out or compiled, else the teacher itself.
        """
        if self._empty is None:
            yield
            return
        from opendino.parallel.fsdp import gather

        shared = method.teacher
        method.teacher = gather(shared, self._empty).eval()
        try:
            yield
        finally:
            method.teacher = shared


def choose_mode(mode: str, device: str, parameters: int) -> str:
    """What "auto" is, and "ddp" where there is one process; and whether a mode can be.

    Args:
        mode: as in the settings.
        device: "cpu" or "cuda".
        parameters: that are trained.

    Raises:
        ConfigError: there are several processes and they are not to share anything.
    """
    if mode == "none" and world_size() > 1:
        raise ConfigError(
            f"parallel.mode = none, but there are {world_size()} processes; use auto, ddp or fsdp, or start one process"
        )
    if mode == "fsdp":  # which works on one process too
        return mode
    if world_size() == 1:
        return "none"
    if mode == "ddp":
        return mode
    return "fsdp" if device == "cuda" and parameters >= LARGE else "ddp"


def _check_graphs(compile_mode: Mode, mode: str) -> None:
    if compile_mode == "reduce-overhead" and mode == "fsdp":
        raise ConfigError(
            "parallel.compile_mode = reduce-overhead makes CUDA graphs, which need parameters that stay where they are "
            "and parallel.mode = fsdp moves them; use parallel.mode=ddp, or leave the mode of compilation out"
        )


def lay_out(
    method: Method,
    optimizer: Optimizer,
    config: ParallelConfig | None = None,
    precision: str = "fp32",
    *,
    padded: bool = False,
) -> Layout:
    """Put networks on the processes as the settings say; in place, before the first step.

    Args:
        method: student and teacher.
        optimizer: of the student.
        config: settings.
        precision: "fp32" or "bf16".
        padded: whether the lists of masked patches are filled up, so that heads see few shapes.

    Raises:
        ConfigError: the mode does not fit the number of processes, or compilation is not possible here.
    """
    config, student, teacher = config or ParallelConfig(), method.student, method.teacher
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    mode = choose_mode(config.mode, trained[0].device.type, sum(parameter.numel() for parameter in trained))
    _check_graphs(config.compile_mode, mode)
    if mode == "none" and not config.compile:
        recompute_blocks(student, config.recompute)
        return Layout(mode)
    from opendino.parallel.fsdp import shard, skeleton

    empty = skeleton(teacher) if mode == "fsdp" or config.compile else None
    recompute_blocks(student, config.recompute)
    if config.compile:
        # A frozen guide beside the two (`methods/guide.py`) too, if it is asked of the same number of crops each time.
        guide: Any = getattr(method, "guide", None) if getattr(method, "has_guide", False) else None
        guides = [] if guide is None or guide.memory is not None else [guide]
        compile_blocks(student, teacher, *guides, mode=config.compile_mode, heads=padded)
    if mode == "fsdp":
        shard(student, teacher, optimizer, precision)
    return Layout(mode, empty, graphs=config.compile_mode == "reduce-overhead")
