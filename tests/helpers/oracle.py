"""TimeSformer written out naively: dense attention under explicit boolean masks, in double
precision.

It shares nothing with the package but the names of the weights. Tokens are a flat list of
coordinates `(h, w, t)`; which of them see each other is asked pair by pair.
"""

import math
from functools import lru_cache
from itertools import product

import torch


Place = tuple[int, int, int]

STEPS = {
    "space_only": ["space"],
    "joint_space_time": ["joint"],
    "divided_space_time": ["temporal", "space"],
    "sparse_local_global": ["local", "global"],
    "axial": ["temporal", "width", "height"],
}


def sees(step: str, query: Place, key: Place, rows: int, columns: int) -> bool:
    """Whether one patch attends to another (the paper's table of schemes)."""
    (h, w, t), (h2, w2, t2) = query, key
    if step == "joint":
        return True
    if step == "space":
        return t == t2
    if step == "temporal":
        return (h, w) == (h2, w2)
    if step == "width":
        return (t, h) == (t2, h2)
    if step == "height":
        return (t, w) == (t2, w2)
    if step == "global":
        return (h - h2) % 2 == 0 and (w - w2) % 2 == 0 and (t - t2) % 2 == 0
    if step == "local":
        return abs(h - h2) <= rows // 2 // 2 and abs(w - w2) <= columns // 2 // 2
    raise KeyError(step)


def places(rows: int, columns: int, frames: int) -> list[Place]:
    return list(product(range(rows), range(columns), range(frames)))


@lru_cache(maxsize=256)
def mask(step: str, rows: int, columns: int, frames: int) -> torch.Tensor:
    """Bool `(n, n)`: row sees column."""
    tokens = places(rows, columns, frames)
    return torch.tensor([[sees(step, q, k, rows, columns) for k in tokens] for q in tokens])


@lru_cache(maxsize=256)
def groups(step: str, rows: int, columns: int, frames: int) -> list[list[int]]:
    """The sets of patches that see each other, each in token order, ordered by how `group_key`
    names them.
    """
    sets: dict[tuple, list[int]] = {}
    for number, place in enumerate(places(rows, columns, frames)):
        sets.setdefault(group_key(step, place), []).append(number)
    seen = mask(step, rows, columns, frames)
    for members in sets.values():  # the keys above are a convenience; the pairwise rule decides
        for number in members:
            assert seen[number].nonzero().flatten().tolist() == members
    return [sets[key] for key in sorted(sets)]


def group_key(step: str, place: Place) -> tuple:
    h, w, t = place
    keys = {"joint": (), "space": (t,), "temporal": (h, w), "width": (h, t), "height": (w, t)}
    return keys[step] if step in keys else (h % 2, w % 2, t % 2)


class Oracle:
    """The network with the weights of a model of this package (names without `timesformer.` for the
    base model).
    """

    def __init__(
        self, config, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64
    ):
        self.config = config
        self.dtype = dtype
        self.weights = {
            name.removeprefix("timesformer."): value.to(dtype) for name, value in weights.items()
        }
        self.steps = STEPS[config.attention_type]

    def __call__(self, clips: torch.Tensor) -> dict:
        """`clips (b, t, c, height, width)` -> `last_hidden_state`, `logits`, `hidden_states`, and
        for each step's name the list over layers of its dense weights (patches `(b, heads, n, n)`;
        last: with CLS, see `last_step`).
        """
        batch = clips.shape[0]
        self.recorded = {"hidden_states": [], **{step: [] for step in self.steps}}
        clips = clips.to(self.dtype)
        # every frame alone, the tokens then averaged over frames
        if self.config.attention_type == "space_only":
            clips = clips.reshape(-1, 1, *clips.shape[2:])
        tokens, grid = self.embed(clips)
        self.recorded["hidden_states"].append(tokens)
        for layer in range(self.config.num_hidden_layers):
            tokens = self.block(f"encoder.layer.{layer}.", tokens, grid)
            self.recorded["hidden_states"].append(tokens)
        if self.config.attention_type == "space_only":
            tokens = torch.stack(
                [clip.mean(dim=0) for clip in tokens.reshape(batch, -1, *tokens.shape[1:])]
            )
        tokens = self.norm("layernorm", tokens)
        logits = self.classify(tokens[:, 0])
        return {"last_hidden_state": tokens, "logits": logits, "grid": grid, **self.recorded}

    def classify(self, cls: torch.Tensor) -> torch.Tensor | None:
        if "classifier.weight" in self.weights:
            return self.linear("classifier", cls)
        if "classifier.0.weight" in self.weights:
            return self.linear("classifier.2", gelu(self.linear("classifier.0", cls)))
        return None

    def embed(self, clips: torch.Tensor) -> tuple[torch.Tensor, Place]:
        patch_h, patch_w = self.weights["embeddings.patch_embeddings.projection.weight"].shape[2:]
        filters = self.weights["embeddings.patch_embeddings.projection.weight"].flatten(1)
        bias = self.weights["embeddings.patch_embeddings.projection.bias"]
        batch, frames = clips.shape[:2]
        rows, columns = clips.shape[3] // patch_h, clips.shape[4] // patch_w
        space, time = self.positions(rows, columns), self.times(frames)
        tokens = [(self.weights["embeddings.cls_token"][0, 0] + space["cls"]).expand(batch, -1)]
        for h, w, t in places(rows, columns, frames):
            patch = clips[:, t, :, h * patch_h : (h + 1) * patch_h, w * patch_w : (w + 1) * patch_w]
            tokens.append(patch.flatten(1) @ filters.T + bias + space[h, w] + time[t])
        return torch.stack(tokens, dim=1), (rows, columns, frames)

    def positions(self, rows: int, columns: int) -> dict:
        """What is added to CLS and to the patch at each `(h, w)`."""
        table = self.weights.get("embeddings.position_embeddings")
        if table is None or self.config.position_embedding_type == "none":
            return dict.fromkeys(["cls", *product(range(rows), range(columns))], 0.0)
        sizes = [
            size if isinstance(size, (list, tuple)) else (size, size)
            for size in (self.config.image_size, self.config.patch_size)
        ]
        old_rows, old_columns = (image // patch for image, patch in zip(*sizes))
        known = table[0, 1:].reshape(old_rows, old_columns, -1)
        kind = self.config.position_interpolation
        vertical, horizontal = (
            resampling(kind, old_rows, rows),
            resampling(kind, old_columns, columns),
        )
        if (old_rows, old_columns) == (rows, columns):
            vertical, horizontal = torch.eye(rows), torch.eye(columns)
        resampled = torch.einsum("ab,cd,bde->ace", vertical.to(known), horizontal.to(known), known)
        return {
            "cls": table[0, 0],
            **{(h, w): resampled[h, w] for h, w in product(range(rows), range(columns))},
        }

    def times(self, frames: int) -> list:
        table = self.weights.get("embeddings.time_embeddings")
        if table is None or self.config.position_embedding_type != "space_time":
            return [0.0] * frames
        kind = "linear" if self.config.position_interpolation == "bicubic" else "nearest"
        matrix = resampling(kind, table.shape[1], frames)
        return list(matrix.to(table) @ table[0])

    def block(self, layer: str, tokens: torch.Tensor, grid: Place) -> torch.Tensor:
        cls, patches = tokens[:, :1], tokens[:, 1:]
        for step in self.steps[:-1]:
            patches = patches + self.early_step(layer, step, patches, grid)
        tokens = torch.cat((cls, patches), dim=1)
        tokens = tokens + self.last_step(layer, tokens, grid)
        hidden = gelu(
            self.linear(layer + "intermediate.dense", self.norm(layer + "layernorm_after", tokens))
        )
        return tokens + self.linear(layer + "output.dense", hidden)

    def early_step(self, layer: str, step: str, patches: torch.Tensor, grid: Place) -> torch.Tensor:
        query, key, value = self.heads(
            f"{layer}{step}_attention.attention.qkv", self.norm(f"{layer}{step}_layernorm", patches)
        )
        weights = masked_softmax(query @ key.mT, mask(step, *grid))  # (b, heads, n, n)
        self.recorded[step].append(weights)
        context = merge(weights @ value)
        return self.linear(
            f"{layer}{step}_dense", self.linear(f"{layer}{step}_attention.output.dense", context)
        )

    def last_step(self, layer: str, tokens: torch.Tensor, grid: Place) -> torch.Tensor:
        """Patches see CLS and their group; CLS sees itself and one group at a time, and takes the
        plain mean.

        Records `(patch weights (b, heads, n, 1 + n), CLS weights (b, heads, groups, 1 + n))`.
        """
        step = self.steps[-1]
        query, key, value = self.heads(
            layer + "attention.attention.qkv", self.norm(layer + "layernorm_before", tokens)
        )
        count = tokens.shape[1] - 1
        seen = torch.cat((torch.ones(count, 1, dtype=torch.bool), mask(step, *grid)), dim=1)
        patch_weights = masked_softmax(query[:, :, 1:] @ key.mT, seen)

        members = groups(step, *grid)
        seen_by_cls = torch.zeros(len(members), 1 + count, dtype=torch.bool)
        for row, numbers in enumerate(members):
            seen_by_cls[row, [0] + [1 + number for number in numbers]] = True
        scores = (query[:, :, :1] @ key.mT).expand(-1, -1, len(members), -1)
        cls_weights = masked_softmax(scores, seen_by_cls)
        self.recorded[step].append((patch_weights, cls_weights))

        cls_context = (cls_weights @ value).mean(dim=2, keepdim=True)  # equal weight for each group
        context = merge(torch.cat((cls_context, patch_weights @ value), dim=2))
        return self.linear(layer + "attention.output.dense", context)

    def heads(self, name: str, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Query (scaled), key and value, each `(b, heads, n, c)`."""
        count = self.config.num_attention_heads
        parts = self.linear(name, tokens).chunk(3, dim=-1)
        query, key, value = (torch.stack(part.chunk(count, dim=-1), dim=1) for part in parts)
        return [query / math.sqrt(query.shape[-1]), key, value]

    def linear(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, tokens: torch.Tensor) -> torch.Tensor:
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        scale = (centred.pow(2).mean(dim=-1, keepdim=True) + self.config.layer_norm_eps).rsqrt()
        return centred * scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def masked_softmax(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    powers = torch.where(
        seen, scores - scores.amax(dim=-1, keepdim=True).detach(), -torch.inf
    ).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def merge(context: torch.Tensor) -> torch.Tensor:
    """`(b, heads, n, c) -> (b, n, heads*c)`."""
    return torch.cat(list(context.unbind(dim=1)), dim=-1)


def resampling(kind: str, old: int, new: int) -> torch.Tensor:
    """The matrix `(new, old)` that resamples one axis as image libraries do: pixel centres, borders
    repeated.
    """
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for position in range(new):
        if kind == "nearest":
            matrix[position, position * old // new] += 1
            continue
        centre = (position + 0.5) * old / new - 0.5
        if kind == "linear":
            centre = max(centre, 0.0)
        start = math.floor(centre)
        for tap in range(start - 1, start + 3):
            weight = cubic(centre - tap) if kind == "bicubic" else max(0.0, 1 - abs(centre - tap))
            matrix[position, min(max(tap, 0), old - 1)] += weight
    return matrix


def cubic(distance: float, a: float = -0.75) -> float:
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
