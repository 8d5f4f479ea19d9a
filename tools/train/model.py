"""Recurrent-depth language models: what they share, and Huginn's published layout.

    e = prelude(embedding);  s = noise;  s = core(adapter[s, e]), again and again;  logits = head(coda(s))

Parameters carry the published names, so that a state dict is a checkpoint. Parcae's layout is in parcae.py, and
layouts.py builds the model of a shape.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 1024
    width: int = 256
    heads: int = 4
    feed_forward: int = 768
    prelude: int = 1
    core: int = 1
    coda: int = 1
    context: int = 1024
    mean_steps: int = 8
    backprop_steps: int = 4
    rope_base: float = 50_000.0
    epsilon: float = 1e-6
    layout: str = "huginn"

    @property
    def depth(self):
        """Layers that a token passes at the mean number of steps."""
        return self.prelude + self.core * self.mean_steps + self.coda

    @property
    def std(self):
        return math.sqrt(2 / (5 * self.width))

    @property
    def out_std(self):
        """For what ends in the residual stream."""
        return self.std / math.sqrt(2 * self.depth)

    @property
    def embedding_scale(self):
        return math.sqrt(self.width) if self.layout == "huginn" else 1.0


# What fits 3 MB and 12 MB at four bits. Parcae's has two coda layers so that the reference puts no value embedding
# anywhere (see parcae.py).
SHAPES = {
    "nano": Shape(core=2, backprop_steps=8),
    "small": Shape(width=512, heads=8, feed_forward=1280, prelude=2, core=2, coda=2, backprop_steps=6),
    "parcae-nano": Shape(core=2, coda=2, backprop_steps=8, epsilon=1e-5, layout="parcae"),
}


class RMSNorm(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.epsilon = shape.epsilon
        self.weight = nn.Parameter(torch.ones(shape.width))

    def forward(self, x):
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.epsilon) * self.weight).to(x.dtype)


def rope_angles(shape):
    """Cosines and sines [context, head size], each angle twice: it turns an interleaved pair."""
    head = shape.width // shape.heads
    frequencies = 1 / shape.rope_base ** (torch.arange(0, head, 2).float() / head)
    angles = torch.outer(torch.arange(shape.context).float(), frequencies).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns the pairs (0, 1), (2, 3), ... of the last dimension."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-odd, even), -1).flatten(-2) * sin


def attend(q, k, v, mask=None):
    """Attention [row, position, heads * head size] of queries, keys and values [row, position, head, head size].

    `mask` is added to the scores; without one, every position sees those before it.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).flatten(2)
    length, size = q.shape[-2:]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.mT / math.sqrt(size)).float().masked_fill(future, -math.inf)
    return (scores.softmax(-1).to(q.dtype) @ v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads, self.head = shape.heads, shape.width // shape.heads
        self.Wqkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head))
        self.proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x, rope, mask=None):
        q, k, v = self.Wqkv(x).unflatten(-1, (3, self.heads, self.head)).unbind(2)
        q = rotate(q + self.qk_bias[0], *rope).to(x.dtype)
        k = rotate(k + self.qk_bias[1], *rope).to(x.dtype)
        return self.proj(attend(q, k, v, mask))


class GatedMLP(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.fc = nn.Linear(shape.width, 2 * shape.feed_forward, bias=False)
        self.proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x):
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class SandwichBlock(nn.Module):
    """Norms before and after: the sum with the residual is normalised too."""

    def __init__(self, shape):
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (RMSNorm(shape) for _ in range(4))
        self.attn = Attention(shape)
        self.mlp = GatedMLP(shape)

    def forward(self, x, rope, mask=None):
        x = self.norm_2(self.attn(self.norm_1(x), rope, mask) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class Looped(nn.Module):
    """What the layouts share. Each has a `transformer` with a table `wte`, and says what `embed`, `step` and `coda` are."""

    # Matrices that are stored as one, by a part of the name: how many.
    FUSED = {}
    # Matrices that are no layer's, by parts of the name: they are updated as vectors are.
    APART = ("wte",)

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        for name, angles in zip(("cos", "sin"), rope_angles(shape)):
            self.register_buffer(name, angles, persistent=False)

    def is_hidden(self, name):
        """Is this parameter a layer's matrix: one for Muon?"""
        return self.get_parameter(name).dim() == 2 and not any(part in name for part in self.APART)

    def fused(self, name):
        """How many matrices this parameter holds."""
        return next((count for part, count in self.FUSED.items() if part in name), 1)

    def angles(self, tokens):
        return tuple(t[: tokens.shape[1], None] for t in (self.cos, self.sin))

    def embed(self, tokens, mask=None):
        raise NotImplementedError

    def step(self, state, embedded, rope, mask=None):
        raise NotImplementedError

    def coda(self, state, rope, mask=None):
        raise NotImplementedError

    def noise(self, rows, generator):
        """A first state: normal, cut at three standard deviations."""
        state = torch.empty(*rows, self.shape.width, device=self.cos.device)
        nn.init.trunc_normal_(state, std=1.0, a=-3.0, b=3.0, generator=generator)
        return (state * (self.shape.std * self.shape.embedding_scale)).to(self.transformer.wte.weight.dtype)

    def head(self, x):
        return F.linear(x, self.transformer.wte.weight)

    def forward(self, tokens, state, steps, backprop_steps, wanted):
        """Logits of the wanted positions after `steps` steps, of which the last `backprop_steps` pass gradients."""
        embedded, rope = self.embed(tokens), self.angles(tokens)
        for i in range(steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= steps - backprop_steps):
                state = self.step(state, embedded, rope)
        return self.head(self.coda(state, rope)[wanted])

    @torch.no_grad()
    def at_depths(self, tokens, depths):
        """Logits after each of the depths, from a state of zeros."""
        embedded, rope = self.embed(tokens), self.angles(tokens)
        state = torch.zeros_like(embedded)
        for i in range(1, max(depths) + 1):
            state = self.step(state, embedded, rope)
            if i in depths:
                yield i, self.head(self.coda(state, rope))


class Huginn(Looped):
    FUSED = {"Wqkv": 3, "mlp.fc": 2}

    def __init__(self, shape):
        super().__init__(shape)

        def blocks(count):
            return nn.ModuleList(SandwichBlock(shape) for _ in range(count))

        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(shape.vocabulary, shape.width),
                prelude=blocks(shape.prelude),
                adapter=nn.Linear(2 * shape.width, shape.width, bias=False),
                core_block=blocks(shape.core),
                coda=blocks(shape.coda),
                ln_f=RMSNorm(shape),
            )
        )
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = shape.out_std if name.endswith("proj.weight") else shape.std
                nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)

    def embed(self, tokens, mask=None):
        x = self.transformer.wte(tokens) * self.shape.embedding_scale
        rope = self.angles(tokens)
        for block in self.transformer.prelude:
            x = block(x, rope, mask)
        return x

    def step(self, state, embedded, rope, mask=None):
        x = self.transformer.adapter(torch.cat((state, embedded), dim=-1))
        for block in self.transformer.core_block:
            x = block(x, rope, mask)
        return x

    def coda(self, state, rope, mask=None):
        x = self.transformer.ln_f(state)
        for block in self.transformer.coda:
            x = block(x, rope, mask)
        return self.transformer.ln_f(x)


def to_bfloat16(model):
    """The matrices in bf16, as they are stored and multiplied; norms and biases stay as they are."""
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.bfloat16()
    return model
