"""Weights as mmaction2 names them give the logits of a network that is put together from the layers
it has.
"""

import pytest
import torch
from torch import nn
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

from hf_timesformer import TimeSformerForVideoClassification
from hf_timesformer.conversion.official_checkpoint import convert_checkpoint
from hf_timesformer.model.modeling_timesformer import TimeSformerModel


WIDTH, HEADS, DEPTH, SIDE, FRAMES, LABELS = 128, 2, 2, 3, 3, 5
KINDS = ("space_only", "joint_space_time", "divided_space_time")


class Attention(nn.Module):
    """mmaction2's wrapper around torch's attention; in divided attention its LayerNorm lies in it."""

    def __init__(self, *, norm: bool = False, over_time: bool = False):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        if norm:
            self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        if over_time:
            self.temporal_fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (groups, tokens, width)
        x = self.norm(x) if hasattr(self, "norm") else x
        x = self.attn(x, x, x)[0]
        return self.temporal_fc(x) if hasattr(self, "temporal_fc") else x


class FeedForward(nn.Module):
    def __init__(self, *, norm: bool):
        super().__init__()
        first = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(0.0))
        self.layers = nn.Sequential(first, nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.0))
        if norm:
            self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.norm(x) if hasattr(self, "norm") else x)


class Block(nn.Module):
    def __init__(self, is_divided: bool):
        super().__init__()
        self.is_divided = is_divided
        if is_divided:
            self.attentions = nn.ModuleList(
                [Attention(norm=True, over_time=True), Attention(norm=True)]
            )
        else:
            self.attentions = nn.ModuleList([Attention()])
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2)])
        self.ffns = nn.ModuleList([FeedForward(norm=is_divided)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, 1 + p*t, width), or (b, 1 + p, width)
        if not self.is_divided:
            x = x + self.attentions[0](self.norms[0](x))
            return x + self.ffns[0](self.norms[1](x))
        cls, patches = x[:, :1], x[:, 1:].unflatten(1, (-1, FRAMES))  # (b, p, t, width)
        patches = patches + self.attentions[0](patches.flatten(0, 1)).view_as(patches)
        frames = patches.transpose(1, 2)  # (b, t, p, width)
        in_frames = torch.cat((cls[:, None].expand(-1, FRAMES, -1, -1), frames), dim=2)
        update = self.attentions[1](in_frames.flatten(0, 1)).view_as(in_frames)
        cls = cls + update[:, :, 0].mean(1, keepdim=True)
        patches = (frames + update[:, :, 1:]).transpose(1, 2)
        x = torch.cat((cls, patches.flatten(1, 2)), dim=1)
        return x + self.ffns[0](x)


class Recognizer(nn.Module):
    """mmaction2's `Recognizer3D` with `TimeSformer` and `TimeSformerHead`, as far as it counts for
    the logits.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.backbone, self.cls_head = nn.Module(), nn.Module()
        self.backbone.patch_embed = nn.Module()
        self.backbone.patch_embed.projection = nn.Conv2d(3, WIDTH, 4, 4)
        self.backbone.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.backbone.pos_embed = nn.Parameter(torch.zeros(1, SIDE * SIDE + 1, WIDTH))
        if kind != "space_only":
            self.backbone.time_embed = nn.Parameter(torch.zeros(1, FRAMES, WIDTH))
        self.backbone.transformer_layers = nn.Module()
        blocks = [Block(kind == "divided_space_time") for _ in range(DEPTH)]
        self.backbone.transformer_layers.layers = nn.ModuleList(blocks)
        self.backbone.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.cls_head.fc_cls = nn.Linear(WIDTH, LABELS)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:  # (b, t, 3, h, w)
        part = self.backbone
        # (b*t, p, width)
        x = part.patch_embed.projection(clips.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat((part.cls_token.expand(len(x), -1, -1), x), dim=1) + part.pos_embed
        if self.kind != "space_only":
            x = x.unflatten(0, (-1, FRAMES))  # (b, t, 1 + p, width)
            patches = x[:, :, 1:].transpose(1, 2) + part.time_embed[:, None]  # (b, p, t, width)
            x = torch.cat((x[:, 0, :1], patches.flatten(1, 2)), dim=1)
        for block in part.transformer_layers.layers:
            x = block(x)
        if self.kind == "space_only":
            x = x.unflatten(0, (-1, FRAMES)).mean(1)
        return self.cls_head.fc_cls(part.norm(x)[:, 0])


def make_recognizer(kind: str) -> Recognizer:
    recognizer = Recognizer(kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in recognizer.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator)
                * (2 * parameter.shape[-1]) ** -0.5
            )
    return recognizer.eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_mmaction2_weights(kind: str, prefix: str, tmp_path):
    recognizer = make_recognizer(kind)
    state = {prefix + name: value for name, value in recognizer.state_dict().items()}
    torch.save({"meta": {"epoch": 15}, "state_dict": state}, tmp_path / "mmaction2.pth")
    model, processor, origin = convert_checkpoint(tmp_path / "mmaction2.pth")
    model.save_pretrained(tmp_path / "converted")
    processor.save_pretrained(tmp_path / "converted")

    opened = AutoModelForVideoClassification.from_pretrained(tmp_path / "converted")
    assert opened.config.attention_type == kind
    clips = torch.randn(2, FRAMES, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = recognizer(clips), opened(clips).logits
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    saved = AutoVideoProcessor.from_pretrained(tmp_path / "converted")
    assert (list(saved.image_mean), list(saved.image_std)) == ([0.5] * 3, [0.5] * 3)
    assert (saved.sampling, saved.sampling_rate) == ("clip", 32)
    assert "mmaction2's configs" in origin
    processor = convert_checkpoint(tmp_path / "mmaction2.pth", sampling_rate=4)[1]
    assert (processor.sampling_rate, list(processor.image_mean)) == (4, [0.5] * 3)


@pytest.mark.parametrize("kind", ["divided_space_time", "joint_space_time"])
def test_backbone_alone_gives_a_model_without_a_classifier(kind: str, tmp_path):
    recognizer = make_recognizer(kind)
    torch.save(recognizer.backbone.state_dict(), tmp_path / "backbone.pth")
    model, _, _ = convert_checkpoint(tmp_path / "backbone.pth")
    assert type(model) is TimeSformerModel
    model.save_pretrained(tmp_path / "converted")
    full = TimeSformerForVideoClassification.from_pretrained(
        tmp_path / "converted", num_labels=LABELS
    )
    full.classifier.load_state_dict(recognizer.cls_head.fc_cls.state_dict())
    clips = torch.randn(1, FRAMES, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            full.eval()(clips).logits, recognizer(clips), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="has no classifier"):
        convert_checkpoint(tmp_path / "backbone.pth", label_names=["a"])


def test_a_layer_that_we_do_not_have_is_named(tmp_path):
    state = make_recognizer("joint_space_time").state_dict()
    name = "backbone.transformer_layers.layers.0.attentions.0.gate.weight"
    torch.save({"state_dict": state | {name: torch.zeros(2)}}, tmp_path / "mmaction2.pth")
    with pytest.raises(ValueError, match=f"no place for {name}"):
        convert_checkpoint(tmp_path / "mmaction2.pth")
