"""Several networks as one."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from condensate.networks import Network


class Together:
    """Networks of one kind that are trained as one: their parameters lie stacked, one program serves them all.

    Args:
        networks: Initialised; they have what was trained in them after ``unstack_``.
        memory_format: How weights lie, as they come if None; on a GPU a compiled program lays images likewise.
    """

    def __init__(self, networks: Sequence[Network], memory_format: torch.memory_format | None = None) -> None:
        self.networks, self.network = networks, networks[0]
        parameters, self.buffers = stack_module_state(list(networks))

        def laid(value: Tensor) -> Tensor:
            if value.ndim != 5 or value.shape[2] < 8 or memory_format is None:  # of few channels that is slower
                return value
            return value.flatten(0, 1).contiguous(memory_format=memory_format).unflatten(0, value.shape[:2])

        self.stacked = {name: laid(value.detach()).requires_grad_() for name, value in parameters.items()}

    def parameters(self) -> list[Tensor]:
        """Of all networks, the first dimension being theirs."""
        return list(self.stacked.values())

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """Likewise, with their names."""
        return list(self.stacked.items())

    def named_buffers(self) -> list[tuple[str, Tensor]]:
        """Likewise, of what is not trained."""
        return list(self.buffers.items())

    @property
    def batch_statistics(self) -> bool:
        """See ``Network``."""
        return self.network.batch_statistics

    def train(self) -> None:
        """Training mode."""
        self.network.train()

    def __call__(self, images: Tensor) -> Tensor:
        """Class scores of as many images a network, those of the first one first: (g * n, C, H, W) -> (g * n, K)."""

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], seen: Tensor) -> Tensor:
            scores: Tensor = functional_call(self.network, (parameters, buffers), (seen,))
            return scores

        seen = images.unflatten(0, (len(self.networks), -1))
        return vmap(one)(self.stacked, self.buffers, seen).flatten(0, 1)

    @torch.no_grad()
    def unstack_(self) -> None:
        """Give every network its own."""
        for number, network in enumerate(self.networks):
            held = dict(network.named_parameters()) | dict(network.named_buffers())
            for name, value in (self.stacked | self.buffers).items():
                held[name].copy_(value[number])
