import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restorevar.errors import UserError
from restorevar.evaluation.protocol import PROTOCOLS, Protocol, find_protocol
from tests.evaluation.photos import photo, tensor


def test_native_rounds_to_8_bits_and_paper_does_not():
    clean = tensor(photo("chelsea.png", 40, 50))
    restored = (clean + 0.001).clamp(0, 1)
    assert torch.equal(PROTOCOLS["native"].prepare(restored, clean).restored, clean)
    paper = Protocol("paper", resize=(40, 50), round_to_8_bits=False)
    assert torch.equal(paper.prepare(restored, clean).restored, restored)


def test_paper_resizes_before_restoration_and_refuses_other_sizes():
    protocol = PROTOCOLS["paper"]
    assert protocol.resize_photo(photo("coffee.png", 300, 451)).shape == (512, 512, 3)
    square = np.zeros((512, 512, 3), np.uint8)
    assert protocol.resize_photo(square) is square
    assert PROTOCOLS["native"].resize_photo(square[:100]).shape == (100, 512, 3)
    with pytest.raises(UserError, match="512 x 512; found 40 x 50"):
        protocol.prepare(torch.rand(1, 3, 40, 50), torch.rand(1, 3, 40, 50))


def test_resizing_is_pillows_lanczos():
    from PIL import Image

    given = photo("astronaut.png", 200, 300)
    expected = np.asarray(Image.fromarray(given).resize((512, 512), Image.Resampling.LANCZOS))
    assert np.array_equal(PROTOCOLS["paper"].resize_photo(given), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(-2, 2), st.integers(-2, 2))
def test_a_shift_of_up_to_two_pixels_is_found_and_undone(down, right):
    large = tensor(photo("chelsea.png", 68, 72))
    clean = large[..., 4:-4, 4:-4]
    shifted = large[..., 4 - down : 64 - down, 4 - right : 68 - right]
    compared = PROTOCOLS["registered_gray"].prepare(shifted, clean)
    assert compared.shifts == [(down, right)]
    assert compared.restored.shape == (1, 1, 56, 60)
    assert float((compared.restored - compared.clean).abs().max()) < 1e-6


def test_grey_and_border():
    protocol = Protocol("own", color="gray", crop_border=3)
    compared = protocol.prepare(torch.rand(2, 3, 20, 30), torch.rand(2, 3, 20, 30))
    assert compared.restored.shape == compared.clean.shape == (2, 1, 14, 24)
    with pytest.raises(UserError, match="too small"):
        protocol.prepare(torch.rand(1, 3, 6, 30), torch.rand(1, 3, 6, 30))


def test_every_protocol_describes_itself():
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert find_protocol(name) is protocol
        assert protocol.as_dict()["resize"] == protocol.resize
    assert PROTOCOLS["native"].describe().endswith("no crop, RGB, and luma (BT.601) where a metric says Y, range 1")
    assert "2 px cut from each side, grey" in PROTOCOLS["registered_gray"].describe()
    assert "512 x 512 (Lanczos)" in PROTOCOLS["paper"].describe()
    assert "best shift of up to 2 px, outside the averages" in PROTOCOLS["registered_gray"].describe()
    with pytest.raises(UserError, match="native, paper, registered_gray"):
        find_protocol("papr")


def test_wrong_input_is_an_error():
    with pytest.raises(UserError, match="differ in shape"):
        PROTOCOLS["native"].prepare(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 21))
