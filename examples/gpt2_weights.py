"""GPT-2 with its public weights: the file that Hugging Face gives, read without their programs.

python examples/gpt2_weights.py model.safetensors 464 3616 11    # goes on after these tokens
python examples/gpt2_weights.py                                  # a small file of random weights

The file is ``model.safetensors`` or ``pytorch_model.bin`` of gpt2, gpt2-medium, -large or -xl.
"""

import os
import sys
import tempfile

import distgrad as dg
from distgrad import nn
from distgrad.nn import functional as F

HEAD_SIZE = 64  # in every GPT-2
# these four were written as (inputs, outputs), the other way round than nn.Linear
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers of old files, no weights


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        batch, time, width = x.shape
        parts = self.c_attn(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, time, width))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    def __init__(self, vocabulary, context, width, layers, heads):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(dg.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)  # the head is tied to the embedding


def from_public(state):
    """Return the weights of a public file under the names and in the shapes of ``GPT2``."""
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix("transformer.")
        if name != "lm_head.weight" and not name.endswith(MASKS):
            ours[name] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    return ours


def to_public(model):
    """Return the weights of a model as the public files have them."""
    state = model.state_dict()
    return {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v for k, v in state.items()}


def load_gpt2(path, head_size=HEAD_SIZE):
    """Return the model of a file; its sizes are read from the shapes."""
    state = from_public(dg.load(path, map_location="cpu"))
    vocabulary, width = state["wte.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("h."))
    model = GPT2(vocabulary, len(state["wpe.weight"]), width, layers, width // head_size)
    model.load_state_dict(state)
    return model.eval()


@dg.no_grad()
def go_on(model, tokens, count=10):
    """Return the tokens with the likeliest ones after them."""
    for _ in range(count):
        logits = model(dg.tensor([tokens[-len(model.wpe.weight) :]]))
        tokens = [*tokens, int(logits[0, -1].argmax())]
    return tokens


def main():
    if len(sys.argv) > 1:
        model = load_gpt2(sys.argv[1])
        print(*go_on(model, [int(token) for token in sys.argv[2:]] or [50256]))
        return
    dg.manual_seed(0)
    small = GPT2(vocabulary=100, context=32, width=64, layers=2, heads=2)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.safetensors")
        dg.serialization.save_file(to_public(small), path)
        model = load_gpt2(path, head_size=32)
    print("parameters", sum(p.numel() for p in model.parameters()))
    print("tokens", *go_on(model, [1, 2, 3]))


if __name__ == "__main__":
    main()
