import torch

from restorevar.models.rotary import apply_rotary, rotary_table
from restorevar.models.scales import ScaleSchedule


def test_same_turns_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    table = rotary_table(ScaleSchedule([1, 2, 3]).positions, 8)
    x = torch.randn(2, table.shape[1], 3, 8).transpose(1, 2)  # heads are strided in the model too
    expected = apply_rotary(x, table)
    with torch.no_grad():
        found = apply_rotary(x, table)
        in_parts = apply_rotary(x[:, :, 5:9], table[:, 5:9])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(in_parts, found[:, :, 5:9])
    assert not torch.allclose(found, x, atol=1e-2)
