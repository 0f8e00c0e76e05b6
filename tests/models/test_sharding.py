import dataclasses

import pytest
import torch

from restorevar.errors import UserError
from restorevar.models import GateConfig
from restorevar.models.sharding import assemble
from tests.models.small import DETAIL, photos, small_model


def test_an_assembled_model_is_the_one_taken_apart() -> None:
    # with tables that no state dict holds, and gains that were vectors while they were split
    model = small_model(detail=dataclasses.replace(DETAIL, photo_width=8), gate=GateConfig(hidden=8))
    state = {name: value[None] if value.dim() == 0 else value for name, value in model.state_dict().items()}
    found = assemble(model.config, state)
    assert not found.training
    for (name, tensor), (_, expected) in zip(found.named_parameters(), model.named_parameters(), strict=True):
        assert (tensor.shape, tensor.stride(), tensor.requires_grad) == (expected.shape, expected.stride(), True), name
    for (name, tensor), (_, expected) in zip(found.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(tensor, expected), name
    assert torch.equal(found.generate(photos(model)).image, model.generate(photos(model)).image)


def test_weights_of_another_model_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"do not fit the model's sizes: refiner\..* is missing or left over"):
        assemble(small_model(refiner=None).config, small_model().state_dict())
    state = small_model().state_dict()
    state["transformer.head.bias"] = state["transformer.head.bias"][:7]
    with pytest.raises(UserError, match=r"'transformer\.head\.bias' has shape \(7,\), expected .*; was it made by an"):
        assemble(small_model().config, state)
