"""A recurrent-depth language model in Parcae's published layout.

    e = norm(prelude(embedding));  s = noise;  s = core(s * exp(-dt * A) + dt * B e), again and again
    logits = head(norm(coda(C s)))

dt = softplus(dt_bias) and A = exp(A_log) have one value for each of the state's: what a step keeps of the state is between
none and all of it, whatever is learned. Here the state is as wide as the stream. Parameters carry the published names,
so that a state dict is a checkpoint, and begin as the reference's do.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from model import Looped, RMSNorm, attend, rotate

# What a step keeps of the state at first.
DECAY = math.sqrt(1 / 5)
# What the reference's norm of queries and keys adds: it gives none, and torch takes this one.
QK_EPSILON = torch.finfo(torch.float32).eps


class Attention(nn.Module):
    """Queries and keys are turned, and then normed without weights."""

    def __init__(self, shape):
        super().__init__()
        self.heads = shape.heads
        width = shape.width
        self.c_q, self.c_k, self.c_v, self.c_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x, rope, mask=None):
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.c_q, self.c_k, self.c_v))
        q, k = (F.rms_norm(rotate(t, *rope), t.shape[-1:], eps=QK_EPSILON).to(x.dtype) for t in (q, k))
        return self.c_proj(attend(q, k, v, mask))


class SquaredMLP(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.fc = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x):
        return self.proj(F.relu(self.fc(x)).square() * 0.5)


class PreNormBlock(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.norm_1, self.norm_2 = RMSNorm(shape), RMSNorm(shape)
        self.attn = Attention(shape)
        self.mlp = SquaredMLP(shape)

    def forward(self, x, rope, mask=None):
        x = self.attn(self.norm_1(x), rope, mask) + x
        return self.mlp(self.norm_2(x)) + x


class Injection(nn.Module):
    """Keeps a part of the state and adds what the prelude made. The rates are vectors: in f32, and without decay."""

    def __init__(self, shape):
        super().__init__()
        # Softplus of it is -log(DECAY), with A = 1.
        self.A_log = nn.Parameter(torch.zeros(shape.width))
        self.dt_bias = nn.Parameter(torch.full((shape.width,), math.log(math.expm1(-math.log(DECAY)))))
        self.B = nn.Parameter(torch.eye(shape.width))

    def forward(self, state, embedded):
        dt = F.softplus(self.dt_bias)
        kept = torch.exp(-dt * self.A_log.exp())
        return (state * kept + dt * F.linear(embedded, self.B)).to(state.dtype)


def value_embeddings(shape):
    """Blocks to which the reference adds a value embedding, which are not implemented here.

    It makes a table for every second block of the stored ones, and a gate for every second of another count. A block
    that does not have both has none.
    """
    stored = shape.prelude + shape.core + shape.coda
    tables = {i for i in range(stored) if i % 2 == (stored - 1) % 2}
    # Coda blocks are numbered as if the loop's were there as often as they are run.
    before_coda = shape.prelude + shape.core
    numbers = {i: i if i < before_coda else i + shape.core * (shape.mean_steps - 1) for i in range(stored)}
    gates = {i for i, number in numbers.items() if number % 2 == (shape.core * shape.backprop_steps - 1) % 2}
    return tables & gates


class Parcae(Looped):
    # The reference's optimiser leaves the loop's own matrices to AdamW, without decay.
    APART = ("wte", "adapter.B", "transformer.C.")

    def __init__(self, shape):
        super().__init__(shape)
        if value_embeddings(shape):
            raise ValueError(f"blocks {value_embeddings(shape)} of this shape have value embeddings in the reference")

        def blocks(count):
            return nn.ModuleList(PreNormBlock(shape) for _ in range(count))

        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(shape.vocabulary, shape.width),
                prelude=blocks(shape.prelude),
                adapter=Injection(shape),
                core_block=blocks(shape.core),
                C=nn.Linear(shape.width, shape.width, bias=False),
                coda=blocks(shape.coda),
                ln_f=RMSNorm(shape),
                ln_prelude=RMSNorm(shape),
            )
        )
        # The strategy "scaled-zero": what ends in the residual stream adds nothing at first.
        for name, weight in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.zeros_(weight)
            elif weight.dim() == 2 and not name.endswith("adapter.B"):
                nn.init.orthogonal_(weight, gain=shape.std * math.sqrt(max(weight.shape)))

    def embed(self, tokens, mask=None):
        x = self.transformer.wte(tokens) * self.shape.embedding_scale
        rope = self.angles(tokens)
        for block in self.transformer.prelude:
            x = block(x, rope, mask)
        return self.transformer.ln_prelude(x)

    def step(self, state, embedded, rope, mask=None):
        x = self.transformer.adapter(state, embedded)
        for block in self.transformer.core_block:
            x = block(x, rope, mask)
        return x

    def coda(self, state, rope, mask=None):
        x = self.transformer.C(state)
        for block in self.transformer.coda:
            x = block(x, rope, mask)
        return self.transformer.ln_f(x)


def config(shape):
    """config.json. The reference's loader takes no keys but these and a few more."""
    return {
        "_class_name": "ParcaeConfig",
        "model_class_name": "Parcae",
        "name": "parcae",
        "block_size": shape.context,
        "n_embd": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "padding_multiple": 64,
        "padded_vocab_size": shape.vocabulary,
        "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": int(shape.rope_base)},
        "block_class_name": "TransformerPreNormBlock",
        "norm_class_name": "RMSNorm",
        "norm_eps": shape.epsilon,
        "mlp_class_name": "BaseMLP",
        "nonlin_name": "ReLU2",
        "bias": False,
        "qk_bias": False,
        "qk_norm": True,
        "init_strategy": "scaled-zero",
        "init_orthogonal": True,
        "injection_type": "diagonal",
        "state_init": "like-init",
        "n_layers_in_prelude": shape.prelude,
        "n_layers_in_recurrent_block": shape.core,
        "n_layers_in_coda": shape.coda,
        "recurrent_embedding_dimension": shape.width,
        "recurrent_intermediation_embedding_dimension": shape.feed_forward,
        "prelude_norm": True,
        "sampling_scheme": "poisson-truncated-full",
        "mean_recurrence": shape.mean_steps,
        "mean_backprop_depth": shape.backprop_steps,
        "recurrent_iteration_method": "per-batch",
        "tie_embeddings": True,
    }
