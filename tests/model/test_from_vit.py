"""`from_vit`: every source, the features at step 0, what is refused."""

import pytest
import torch
from oracle import Oracle
from safetensors.torch import load_file, save_file
from tiny import SCHEMES, assert_close, clips, randomise
from torch.nn import functional
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_timesformer import TimeSformerForVideoClassification
from hf_timesformer.model.schemes import SCHEMES as STEPS


SIZES = {
    "image_size": 8,
    "patch_size": 2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
DINO = {**SIZES, "mlp_ratio": 2}


def timm_weights(
    heads: int = 2, side: int = 4, qkv_bias: bool = True, layer_scale: bool = False
) -> dict:
    """A two-block ViT of heads of 64 channels under timm's names, with a classifier that has to be
    left out.
    """
    generator, d = torch.Generator().manual_seed(5), 64 * heads
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + side * side, d),
        "patch_embed.proj.weight": (d, 3, 2, 2),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "head.weight": (10, d),
        "head.bias": (10,),
    }
    for block in ("blocks.0.", "blocks.1."):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (d,), f"{block}{norm}.bias": (d,)}
        for name, rows, columns in (
            ("attn.qkv", 3 * d, d),
            ("attn.proj", d, d),
            ("mlp.fc1", 96, d),
            ("mlp.fc2", d, 96),
        ):
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        if not qkv_bias:
            del shapes[f"{block}attn.qkv.bias"]
        if layer_scale:
            shapes |= {f"{block}ls1.gamma": (d,), f"{block}ls2.gamma": (d,)}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def timm_features(state: dict, images: torch.Tensor, heads: int) -> torch.Tensor:
    """The tokens that a ViT with these weights gives, written out:
    `(b, 3, height, width) -> (b, 1 + n, d)`.
    """
    filters = state["patch_embed.proj.weight"]
    patches = functional.conv2d(
        images, filters, state["patch_embed.proj.bias"], stride=filters.shape[-1]
    )
    tokens = torch.cat(
        (state["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT), dim=1
    )
    tokens = tokens + state["pos_embed"]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in (f"blocks.{index}." for index in range(depth)):

        def linear(name, x, block=block):
            return functional.linear(
                x, state[f"{block}{name}.weight"], state.get(f"{block}{name}.bias")
            )

        def norm(name, x, block=block):
            return functional.layer_norm(
                x, x.shape[-1:], state[f"{block}{name}.weight"], state[f"{block}{name}.bias"], 1e-6
            )

        qkv = (
            linear("attn.qkv", norm("norm1", tokens))
            .unflatten(-1, (3, heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        context = ((qkv[0] @ qkv[1].mT) * qkv.shape[-1] ** -0.5).softmax(dim=-1) @ qkv[2]
        update = linear("attn.proj", context.transpose(1, 2).flatten(2))
        tokens = tokens + update * state.get(f"{block}ls1.gamma", 1.0)
        update = linear("mlp.fc2", functional.gelu(linear("mlp.fc1", norm("norm2", tokens))))
        tokens = tokens + update * state.get(f"{block}ls2.gamma", 1.0)
    return tokens


def last_norm(state: dict, tokens: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(
        tokens, tokens.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6
    )


@pytest.fixture
def timm_file(tmp_path):
    state = timm_weights()
    save_file(state, tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors", state


def features(model, inputs):
    with torch.no_grad():
        return model.eval().timesformer(inputs).last_hidden_state


def test_space_only_starts_as_the_mean_of_the_frames(timm_file):
    path, state = timm_file
    model, inputs = (
        TimeSformerForVideoClassification.from_vit(path, attention_type="space_only"),
        clips(2, 5, 3, 8, 8),
    )
    frames = timm_features(state, inputs.flatten(0, 1), heads=2).unflatten(0, (2, 5))
    assert_close(features(model, inputs), last_norm(state, frames.mean(dim=1)))


@pytest.mark.parametrize("scheme", ["joint_space_time", "divided_space_time"])
def test_one_frame_starts_as_the_vit(scheme, timm_file):
    """Joint attention over one frame is the ViT's; over more it sees all of them, as nothing masks
    it.
    """
    path, state = timm_file
    model, inputs = (
        TimeSformerForVideoClassification.from_vit(path, attention_type=scheme),
        clips(2, 1, 3, 8, 8),
    )
    assert_close(
        features(model, inputs), last_norm(state, timm_features(state, inputs[:, 0], heads=2))
    )


def test_divided_starts_as_the_vit_on_a_still_clip(timm_file):
    """Each frame's patches and the CLS that the frames share are then the ViT's own."""
    path, state = timm_file
    model, image = TimeSformerForVideoClassification.from_vit(path), clips(2, 3, 8, 8)
    assert model.config.attention_type == "divided_space_time"
    expected = last_norm(state, timm_features(state, image, heads=2))
    actual = features(model, image[:, None].repeat(1, 4, 1, 1, 1))
    assert_close(actual[:, 0], expected[:, 0])
    for frame in actual[:, 1:].unflatten(1, (16, 4)).unbind(dim=2):
        assert_close(frame, expected[:, 1:])


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 10, 6)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_starts_as_the_vit_under_its_last_mask(scheme, shape, timm_file):
    """The earlier steps add nothing yet: their extra layer is zero, and so are the time embeddings."""
    path, _ = timm_file
    model = TimeSformerForVideoClassification.from_vit(path, attention_type=scheme, num_frames=3)
    inputs = clips(2, shape[0], 3, *shape[1:])
    confined = Oracle(model.config, model.state_dict())
    confined.steps = confined.steps[-1:]
    assert_close(features(model, inputs), confined(inputs)["last_hidden_state"])


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if len(STEPS[scheme]) > 1])
def test_earlier_steps_start_from_the_blocks_own_attention(scheme, timm_file):
    path, state = timm_file
    model = TimeSformerForVideoClassification.from_vit(path, attention_type=scheme)
    for index, layer in enumerate(model.timesformer.encoder.layer):
        for step in STEPS[scheme][:-1]:
            attention, norm = (
                getattr(layer, f"{step}_attention"),
                getattr(layer, f"{step}_layernorm"),
            )
            assert torch.equal(
                attention.attention.qkv.weight, state[f"blocks.{index}.attn.qkv.weight"]
            )
            assert torch.equal(attention.output.dense.bias, state[f"blocks.{index}.attn.proj.bias"])
            assert torch.equal(norm.weight, state[f"blocks.{index}.norm1.weight"])
            dense = getattr(layer, f"{step}_dense")
            assert not dense.weight.any()
            assert not dense.bias.any()
            assert (
                attention.attention.qkv.weight.data_ptr()
                != layer.attention.attention.qkv.weight.data_ptr()
            )
    assert not model.timesformer.embeddings.time_embeddings.any()


@pytest.mark.parametrize(
    "options", [{"layer_scale": True}, {"qkv_bias": False}, {"heads": 1, "side": 3}], ids=str
)
def test_kinds_of_timm_weights(options, tmp_path):
    state = timm_weights(**options)
    save_file(state, tmp_path / "vit.safetensors")
    model = TimeSformerForVideoClassification.from_vit(
        str(tmp_path / "vit.safetensors"), num_labels=7
    )
    assert model.config.num_labels == 7
    assert model.config.qkv_bias is options.get("qkv_bias", True)
    side, heads = 2 * options.get("side", 4), options.get("heads", 2)
    assert (model.config.image_size, model.config.patch_size, model.config.num_attention_heads) == (
        side,
        2,
        heads,
    )
    inputs = clips(2, 1, 3, side, side)
    assert_close(
        features(model, inputs), last_norm(state, timm_features(state, inputs[:, 0], heads))
    )


def test_half_precision_weights_become_fp32(tmp_path):
    state = {name: value.half() for name, value in timm_weights().items()}
    save_file(state, tmp_path / "vit.safetensors")
    model = TimeSformerForVideoClassification.from_vit(tmp_path / "vit.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


SOURCES = {
    "vit": (ViTModel, ViTConfig(**SIZES)),
    "vit without qkv bias": (ViTModel, ViTConfig(**SIZES, qkv_bias=False)),
    "vit with a head": (ViTForImageClassification, ViTConfig(**SIZES)),
    "deit": (DeiTModel, DeiTConfig(**SIZES)),
    "dinov2": (Dinov2Model, Dinov2Config(**DINO)),
    "dinov2 with a head": (Dinov2ForImageClassification, Dinov2Config(**DINO)),
}


@pytest.fixture(params=SOURCES, scope="module")
def source(request):
    kind, config = SOURCES[request.param]
    torch.manual_seed(0)
    return randomise(kind(config)).eval()


def own_features(vit, images):
    """The base model's tokens after its last LayerNorm; a DeiT's without its distillation token."""
    base = vit.base_model
    with torch.no_grad():
        if base.config.model_type != "deit":
            return base(images).last_hidden_state
        plain = ViTModel(
            ViTConfig(**SIZES, layer_norm_eps=base.config.layer_norm_eps), add_pooling_layer=False
        ).eval()
        state = {n: v for n, v in base.state_dict().items() if not n.startswith("pooler")}
        del state["embeddings.distillation_token"]
        positions = state["embeddings.position_embeddings"]
        state["embeddings.position_embeddings"] = torch.cat(
            (positions[:, :1], positions[:, 2:]), dim=1
        )
        incompatible = plain.load_state_dict(state, strict=False)
        assert not incompatible.missing_keys
        return plain(images).last_hidden_state


@pytest.mark.parametrize("form", ["instance", "folder"])
def test_transformers_vits(source, form, tmp_path, capfd):
    vit = source
    if form == "folder":
        source.save_pretrained(tmp_path)
        vit = str(tmp_path)
    model, images = TimeSformerForVideoClassification.from_vit(vit, num_frames=2), clips(2, 3, 8, 8)
    assert "UNEXPECTED" not in capfd.readouterr().err  # of a head that nobody asked for
    expected = own_features(source, images)
    assert_close(features(model, images[:, None]), expected)
    still = features(model, images[:, None].repeat(1, 3, 1, 1, 1))
    assert_close(still[:, 0], expected[:, 0])
    assert model.config.layer_norm_eps == source.config.layer_norm_eps


def test_the_source_is_left_as_it_was(source):
    before = {name: value.clone() for name, value in source.state_dict().items()}
    model = TimeSformerForVideoClassification.from_vit(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_another_image_size_resizes_the_positions_bicubically(timm_file):
    path, state = timm_file
    model = TimeSformerForVideoClassification.from_vit(path, image_size=[12, 6])
    grid = state["pos_embed"][:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = functional.interpolate(grid, size=(6, 3), mode="bicubic").flatten(2).mT
    assert_close(model.timesformer.embeddings.position_embeddings[:, 1:], expected, relative=1e-6)
    assert torch.equal(
        model.timesformer.embeddings.position_embeddings[:, :1], state["pos_embed"][:, :1]
    )


@pytest.mark.parametrize("kind", ["space", "none"])
def test_ablations_leave_out_what_they_lack(kind, timm_file):
    path, _ = timm_file
    model = TimeSformerForVideoClassification.from_vit(
        path, position_embedding_type=kind, classifier_hidden_size=9
    )
    inputs = clips(1, 2, 3, 8, 8)
    expected = Oracle(model.config, model.state_dict())(inputs)
    assert_close(features(model, inputs), expected["last_hidden_state"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 64),
        ("num_hidden_layers", 3),
        ("patch_size", 4),
        ("intermediate_size", 8),
        ("num_channels", 4),
    ],
)
def test_overrides_that_contradict_the_weights_are_named(field, value, timm_file):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        TimeSformerForVideoClassification.from_vit(timm_file[0], **{field: value})


def test_sources_that_are_no_plain_vit(tmp_path):
    from_vit = TimeSformerForVideoClassification.from_vit
    with pytest.raises(ValueError, match=r"no file .*nowhere\.safetensors"):
        from_vit(tmp_path / "nowhere.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors.* timm's names"):
        from_vit(tmp_path / "other.safetensors")
    save_file(
        timm_weights() | {"blocks.0.attn.q_norm.weight": torch.zeros(64)},
        tmp_path / "normed.safetensors",
    )
    with pytest.raises(ValueError, match=r"normed\.safetensors.*q_norm"):
        from_vit(tmp_path / "normed.safetensors")
    swin = SwinModel(
        SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=2)
    )
    with pytest.raises(ValueError, match="swin"):
        from_vit(swin)
    swiglu = Dinov2Model(Dinov2Config(**{**DINO, "use_swiglu_ffn": True}))
    with pytest.raises(ValueError, match="dinov2"):
        from_vit(swiglu)
    with pytest.raises(OSError, match="nothing-here"):
        from_vit(str(tmp_path / "nothing-here"))


def test_a_missing_weight_is_named(tmp_path):
    state = timm_weights()
    del state["blocks.1.mlp.fc2.bias"]
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        TimeSformerForVideoClassification.from_vit(tmp_path / "vit.safetensors")
    ViTModel(ViTConfig(**SIZES)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in state.items() if "layernorm_after" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights of its vit, such as .*layernorm_after"):
        TimeSformerForVideoClassification.from_vit(str(tmp_path))


def test_weights_of_a_real_vit(shared_dir):
    """ViT-S/14: the features of a frame are those of the forward written out above."""
    path = shared_dir / "weights" / "vit_small_patch14_224.safetensors"
    state = {name: value.float() for name, value in load_file(path).items()}
    model = TimeSformerForVideoClassification.from_vit(path)
    assert (
        model.config.hidden_size,
        model.config.num_attention_heads,
        model.config.patch_size,
    ) == (384, 6, 14)
    assert (
        model.config.image_size,
        model.config.num_hidden_layers,
        model.config.intermediate_size,
    ) == (224, 12, 1536)
    image = clips(1, 3, 224, 224)
    with torch.no_grad():
        expected = last_norm(state, timm_features(state, image, heads=6))
    assert_close(features(model, image[:, None]), expected)
    still = features(model, image[:, None].repeat(1, 2, 1, 1, 1))
    assert_close(still[:, 0], expected[:, 0])
