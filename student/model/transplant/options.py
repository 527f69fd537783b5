"""The shape of the mixer that replaces attention: two presets, and what fits."""

from dataclasses import dataclass, replace

from delta_common.errors import UserError
from student.model.shape import StudentSettings


@dataclass(frozen=True, kw_only=True)
class MixerShape:
    """What a mixer adds to the projections of the attention that it replaces.

    Raises `UserError` for numbers that make no mixer.
    """

    window: int
    """Positions that softmax attention sees, the present one among them; 0 for none."""
    sinks: int
    """First positions of a document that stay in sight behind the window."""
    convolution: int
    """Positions that the causal convolution over queries, keys and values sees; 0 for none."""
    lags: int
    """Nearest positions weighted by how far back they lie; 0 for none."""
    feature_factor: int
    """Rows of a feature map over the size of a head; there are twice as many features."""
    attention_at: tuple[int, ...] = ()
    """Layers, from 0, that keep the teacher's attention over the whole document in place of a mixer."""

    def __post_init__(self) -> None:
        if min(self.attention_at, default=0) < 0:
            raise UserError(f"model.attention_at {min(self.attention_at)}: layers are counted from 0")
        if min(self.window, self.sinks, self.convolution, self.lags) < 0:
            raise UserError("model.window, sinks, convolution and lags count positions; give 0 or more")
        if self.feature_factor < 1:
            raise UserError(f"model.feature_factor {self.feature_factor}: a head needs features; give 1 or more")
        if self.sinks and not self.window:
            raise UserError(f"model.sinks {self.sinks}: sinks stand behind a window; set model.window too, or sinks 0")
        if self.window and (self.convolution or self.lags):
            raise UserError("model.convolution and model.lags are for a mixer without a window; set them to 0")


TRANSPLANT = MixerShape(window=0, sinks=0, convolution=4, lags=8, feature_factor=2)
"""The recurrence, with convolution and lags for what is near; no attention."""
HYBRID = MixerShape(window=64, sinks=4, convolution=0, lags=0, feature_factor=2)
"""A window of softmax attention and sinks; the recurrence for what they do not see."""


def mixer_shape(settings: StudentSettings) -> MixerShape:
    """The mixer of a preset, with the window and the sinks that are set, and the layers that have none."""
    layers = tuple(sorted(set(settings.attention_at)))
    if settings.preset == "transplant":
        return replace(TRANSPLANT, attention_at=layers)
    return replace(HYBRID, window=settings.window, sinks=settings.sinks, attention_at=layers)


def require_window_in_row(shape: MixerShape, row: int) -> None:
    """Raise `UserError` for a window longer than the rows that are trained on."""
    if shape.window > row:
        raise UserError(
            f"model.window {shape.window} is longer than the cache's rows of {row}: the recurrence would see nothing; "
            f"give at most {row}"
        )


def require_layers(shape: MixerShape, layers: int) -> None:
    """Raise `UserError` for layers that a teacher of so many has not, and where none would have a mixer."""
    last = max(shape.attention_at, default=0)
    if last >= layers:
        raise UserError(f"model.attention_at {last}: the teacher has the layers 0 to {layers - 1}")
    if len(shape.attention_at) == layers:
        raise UserError("model.attention_at: names every layer, which makes the teacher itself; leave some out")
