"""transformers' tests of any model, for both of ours in all five schemes.

`scripts/common_suite.sh` puts this file among them and runs it; it is no module of our own tests.
"""

import copy
import unittest

import torch
from torch import nn
from transformers.testing_utils import torch_device

from hf_timesformer import TimeSformerConfig, TimeSformerForVideoClassification, TimeSformerModel

from ..test_modeling_common import ModelTesterMixin, floats_tensor  # type: ignore[import-not-found]


BATCH, FRAMES, SIDE, PATCH = 13, 2, 10, 2


class Tester:
    """What the common tests ask about the model that they test."""

    __test__ = False  # pytest takes every class called Test... for one of tests
    is_training = True
    batch_size = BATCH
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, scheme: str):
        self.scheme = scheme
        frames = 1 if scheme == "space_only" else FRAMES  # each frame runs by itself
        self.seq_length = (SIDE // PATCH) ** 2 * frames + 1

    def prepare_config_and_inputs_for_common(self) -> tuple[TimeSformerConfig, dict]:
        config = TimeSformerConfig(
            attention_type=self.scheme,
            image_size=SIDE,
            patch_size=PATCH,
            num_frames=FRAMES,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            num_labels=10,
        )
        return config, {"pixel_values": floats_tensor([BATCH, FRAMES, 3, SIDE, SIDE])}


class Common(ModelTesterMixin):
    all_model_classes = (TimeSformerModel, TimeSformerForVideoClassification)
    test_resize_embeddings = False  # of words
    # Shapes of attention weights differ between schemes: tests/model/test_modeling.py has them.
    has_attentions = False
    scheme: str

    def setUp(self) -> None:
        self.model_tester = Tester(self.scheme)

    def _prepare_for_class(
        self, inputs_dict: dict, model_class: type, return_labels: bool = False
    ) -> dict:
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is TimeSformerForVideoClassification:
            inputs["labels"] = torch.zeros(BATCH, dtype=torch.long, device=torch_device)
        return inputs

    def test_model_get_set_embeddings(self) -> None:
        """The common test wants an `nn.Embedding`, of words. Patches have a convolution, so stock's
        tests of TimeSformer ask no more than this either."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            assert isinstance(model.get_input_embeddings(), nn.Module)
            assert model.get_output_embeddings() is None


class TestSpaceOnly(Common, unittest.TestCase):
    scheme = "space_only"


class TestJoint(Common, unittest.TestCase):
    scheme = "joint_space_time"


class TestDivided(Common, unittest.TestCase):
    scheme = "divided_space_time"


class TestSparse(Common, unittest.TestCase):
    scheme = "sparse_local_global"


class TestAxial(Common, unittest.TestCase):
    scheme = "axial"
