"""The optimiser of the matrices."""

import collections
import math

import torch


def orthogonal(x):
    """About the nearest orthogonal matrix to each (Newton-Schulz, as Muon has it)."""
    # Few CPUs multiply bf16 fast.
    x = x.bfloat16() if x.is_cuda else x
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


def parts(named, fused):
    """{shape: [matrix]} of tensors by name. Matrices that are stored as one are several: `fused` says how many."""
    groups = collections.defaultdict(list)
    for name, matrix in named.items():
        count = fused(name)
        groups[matrix.shape[0] // count, matrix.shape[1]] += matrix.chunk(count)
    return groups


class Muon:
    """Muon with the step of AdamW's size. Matrices of a shape are updated together."""

    def __init__(self, named, fused, decay=0.05, momentum=0.95):
        self.names, self.fused, self.decay, self.momentum = list(named), fused, decay, momentum
        self.groups = parts(named, fused)
        self.means = {shape: torch.zeros_like(torch.stack(group)) for shape, group in self.groups.items()}

    def step(self, rate, gradients):
        gradients = parts({name: gradients[name] for name in self.names}, self.fused)
        for shape, weights in self.groups.items():
            gradient, mean = torch.stack(gradients[shape]), self.means[shape]
            mean.lerp_(gradient, 1 - self.momentum)
            change = orthogonal(gradient.lerp(mean, self.momentum)) * (-rate * 0.2 * math.sqrt(max(shape)))
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, list(change.unbind(0)))
