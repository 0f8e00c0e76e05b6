"""Averages of the weights on their way, which a stage's export takes."""

from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from restorevar.errors import UserError

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage(WeightAveraging):
    """Exponential moving average of the weights: validated, exported and kept in checkpoints beside the weights.

    Unlike Lightning's ``EMAWeightAveraging``, whose decay a + (1 - decay) w rounds even where the average a equals the
    weight w, it leaves weights that do not change as they are to the bit: a frozen encoder must stay the one that
    tokens and stored latents were made with.

    Args:
        decay: Share of the average that each step keeps, in [0, 1].

    Raises:
        UserError: The decay is outside that range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay <= 1:
            raise UserError(f"ExponentialMovingAverage: decay is {decay}; expected 0 to 1, such as 0.999")
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
