"""The gradients of a step as parts of one tensor, which workers average at once, between two graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from itwinai.compat.torch_compile import FakeTensors
from itwinai.interfaces import AveragesFlat


class FlatGradients:
    """Where the gradients of all trained parameters lie: one tensor per type, the same on all workers.

    Args:
        parameters: those that are trained, in the same order on all workers.
        partial: some may get no gradient on some workers. They count as zero there, as under DDP, and keep what they
            have where no worker has one. The workers tell each other in the same tensor.
    """

    def __init__(self, parameters: Sequence[Tensor], partial: bool) -> None:
        self.parameters, self.partial = list(parameters), partial
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        self.groups: list[tuple[list[Tensor], Tensor]] = []
        self._views: list[tuple[Tensor, Tensor]] = []
        self._used: Tensor | None = None  # one number per parameter, at the end of the first tensor
        for (dtype, device), group in kinds.items():
            sizes = [parameter.numel() for parameter in group]
            used = len(self.parameters) if partial and not self.groups else 0
            buffer = torch.zeros(sum(sizes) + used, dtype=dtype, device=device)
            parts = buffer.split([*sizes, used])
            self._views += [(p, part.view(p.shape)) for p, part in zip(group, parts, strict=False)]
            self._used = parts[-1] if used else self._used
            self.groups.append((group, buffer))
        self._order = {id(parameter): number for number, parameter in enumerate(self.parameters)}

    def are_of(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether these are the gradients of just those parameters."""
        return len(parameters) == len(self.parameters) and all(
            one is other for one, other in zip(parameters, self.parameters, strict=True)
        )

    def missing(self, found: Mapping[int, Tensor]) -> list[Tensor]:
        """Return the parameters, by id, that have no gradient and would need one."""
        return [] if self.partial else [p for p in self.parameters if id(p) not in found]

    def trace(self, gradients: Mapping[int, Tensor], fakes: FakeTensors) -> None:
        """Write gradients, by the ids of their parameters, into the stand-ins of the tensors."""
        for number, (group, buffer) in enumerate(self.groups):
            flat = fakes.of(buffer)
            fakes_of = [gradients.get(id(p)) for p in group]
            parts = [
                flat.new_zeros(p.numel()) if gradient is None else gradient.detach().reshape(-1)
                for p, gradient in zip(group, fakes_of, strict=True)
            ]
            if self.partial and not number:
                parts += [flat.new_full((1,), float(id(p) in gradients)) for p in self.parameters]
            flat.copy_(torch.cat(parts))

    def collect(self) -> None:
        """Write the gradients that the parameters have."""
        for parameter, view in self._views:
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad is not view:
                view.copy_(parameter.grad)
        if self._used is not None:
            self._used.copy_(torch.tensor([float(parameter.grad is not None) for parameter in self.parameters]))

    def average(self, strategy: AveragesFlat) -> None:
        """Average over the workers, all of which have to call it."""
        for number, (_, buffer) in enumerate(self.groups):
            strategy.average_flat(buffer, f"flat.{number}")

    def publish(self, cleared: bool) -> None:
        """Set the gradients of the parameters.

        Args:
            cleared: whether parameters without a gradient have none; otherwise they keep what they have.
        """
        if self._used is None:
            for parameter, view in self._views:
                parameter.grad = view
            return
        used = self._used.tolist()
        for parameter, view in self._views:
            if used[self._order[id(parameter)]]:
                parameter.grad = view
            elif cleared:
                parameter.grad = None
