"""Tiny random checkpoints and their goldens: what the scripts beside this one share. Needs torch and safetensors."""

import json

import torch
from safetensors.torch import load_file, save_file


def relative(found, expected):
    """The largest absolute error over the tensor's standard deviation."""
    return ((found - expected).abs().max() / expected.std()).item()


def random_weights(shapes, generator, embedding=1.0, gain=1.0):
    """f32 weights by name that keep activations near 1 and leave no parameter at a value that hides it.

    Vectors are norms (near 1) or, if named so, biases; matrices keep the variance times `gain` squared.
    """
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(tuple(shape), generator=generator)
        if name.endswith("bias") or "z_L_init" in name:
            weights[name] = 0.3 * noise
        elif len(shape) == 1:
            weights[name] = 1 + 0.2 * noise
        elif any(table in name for table in ("embed_tokens", "wte", "wpe", "value_embeds")):
            weights[name] = embedding * noise
        else:
            weights[name] = gain * noise / shape[1] ** 0.5
    return weights


def tokens_of(generator, vocab, count):
    return torch.randint(vocab, (count,), generator=generator)


def save_tensors(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, path, {"format": "pt"})
    path.chmod(0o644)


def save_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def save(folder, config, weights, golden):
    save_json(folder / "config.json", config)
    save_tensors(folder / "model.safetensors", weights)
    save_tensors(folder / "golden.safetensors", golden)


def load(folder):
    """A folder's config, weights and golden."""
    return (
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
        load_file(folder / "golden.safetensors"),
    )


def compare(folder, found, golden, bound=1e-5):
    """Every floating-point tensor of the golden must have been computed again."""
    errors = {k: relative(found[k], v) for k, v in golden.items() if v.is_floating_point() and k != "init_state"}
    print(folder, ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    assert max(errors.values()) < bound
    for name, expected in golden.items():
        if not expected.is_floating_point():
            assert torch.equal(found[name], expected), name
