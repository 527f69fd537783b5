"""The mixer in attention's place: its projections as they are, around a recurrence of constant size.

`transplant` weighs all positions of the document by the recurrence, over queries, keys and values that went through
a short convolution, and the nearest ones by their lag too. `hybrid` weighs a window and sinks by softmax attention, and
by the recurrence what these do not see. Either way the weights are summed as if they came from one softmax, so how
much each part counts is learned, position by position.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from xlstm.components.conv import CausalConv1d, CausalConv1dConfig

from student.model.kernels.chunks import NOTHING, Memory
from student.model.kernels.convolution import causal_conv
from student.model.transplant.attention import Attention, Heads, LayerState
from student.model.transplant.mixing import Mixing, delayed, zeros_before
from student.model.transplant.options import MixerShape
from student.model.transplant.sums import naive, recurrence_fused, window_flex
from student.model.transplant.sums.nearby import nearby, with_past
from student.model.transplant.sums.recurrence import HeadInputs, recurrence
from student.model.transplant.sums.weighted import Weighted, added, mean
from student.model.transplant.sums.window import WindowInputs, chunk_size, sinks_by_chunk, window

FORGET_BIAS = (2.0, 6.0)
"""Of the first and the last head: they forget half in 5 and in 280 positions."""
LAG_BIAS = -2.0
SHARE_BIAS = 1.0
"""Of the recurrence beside the window: little enough to begin as the window alone does."""


class Mixer(Attention):
    """Called as the layer calls its attention; its softmax attention is what it learns from."""

    def __init__(
        self, attention: Any, hidden_size: int, shape: MixerShape, kernels: Literal["auto", "naive"] = "auto"
    ) -> None:
        super().__init__(attention)
        self.shape, self.kernels = shape, kernels
        width, narrow = self.q_proj.out_features, self.k_proj.out_features
        heads = width // self.head_dim
        self.input_gate, self.forget_gate = nn.Linear(hidden_size, heads), nn.Linear(hidden_size, heads)
        features = shape.feature_factor * self.head_dim
        self.q_features = nn.Parameter(torch.empty(heads, self.head_dim, features))
        self.k_features = nn.Parameter(torch.empty(heads, self.head_dim, features))
        if shape.convolution:
            taps = CausalConv1dConfig(feature_dim=width + 2 * narrow, kernel_size=shape.convolution)
            self.convolution = CausalConv1d(taps)
        if shape.lags:
            self.lags = nn.Linear(hidden_size, heads * shape.lags)
        if shape.window:
            self.share = nn.Linear(hidden_size, heads)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Initial values: features of the head's own entries, then of random directions; gates of the biases alone."""
        width = self.head_dim
        plain = torch.eye(width).repeat(len(self.q_features), 1, 1)
        directions = functional.normalize(torch.randn(*plain.shape[:2], self.q_features.shape[-1] - width), dim=1)
        for features in (self.q_features, self.k_features):
            features.copy_(torch.cat([plain, directions], dim=-1))
        for gate, bias in ((self.input_gate, 0.0), (self.forget_gate, 0.0), (getattr(self, "share", None), SHARE_BIAS)):
            if gate is not None:
                gate.weight.zero_()
                gate.bias.fill_(bias)
        self.forget_gate.bias.copy_(torch.linspace(*FORGET_BIAS, len(self.q_features)))
        if self.shape.convolution:
            self.convolution.conv.weight.zero_()[..., -1] = 1
            self.convolution.conv.bias.zero_()
        if self.shape.lags:
            self.lags.weight.zero_()
            self.lags.bias.fill_(LAG_BIAS)

    def mix(self, hidden_states: Tensor, mixing: Mixing) -> Tensor:
        """The layer's output (B, T, d) from its input (B, T, d); the state, if wanted, goes to `mixing.after`."""
        before = {} if mixing.before is None else mixing.before[self.name]
        mix = self._beside_window if self.shape.window else self._beside_lags
        sums, after = mix(hidden_states, self.project(hidden_states), mixing, before)
        if mixing.after is not None:
            mixing.after[self.name] = after
        return self._output(mean(sums).to(hidden_states.dtype))

    def _beside_lags(self, x: Tensor, heads: Heads, mixing: Mixing, before: LayerState) -> tuple[Weighted, LayerState]:
        after: LayerState = {}
        if self.shape.convolution:
            heads, after["convolution"] = self._convolved(heads, mixing, before)
        i, log_forget, *lags = self._logarithms(x, *([self.lags] if self.shape.lags else []))
        inputs = HeadInputs(*self._features(heads.q, heads.k), heads.v, i, functional.logsigmoid(log_forget))
        place = None if mixing.document_start is None else mixing.place
        sums, after["memory"] = self._recur(inputs, before.get("memory"), place, mixing)
        if self.shape.lags:
            behind = None if "values" not in before else self._for_each_head(before["values"][0])
            values = with_past(self._for_each_head(heads.v), behind, self.shape.lags - 1)
            log_weights = torch.unflatten(lags[0], 1, (-1, self.shape.lags)).transpose(2, 3)
            run = naive.nearby if self.kernels == "naive" else nearby
            sums = added(sums, run(log_weights, values, mixing.place))
            after["values"] = (self._last_values(heads.v, before),)
        return sums, after

    def _last_values(self, v: Tensor, before: LayerState) -> Tensor:
        """Values (B, K, lags - 1, D) that the next sequence's lags reach back to."""
        behind = before["values"][0] if "values" in before else None
        reach = self.shape.lags - 1
        return with_past(v, behind, reach)[:, :, v.shape[2] :]

    def _beside_window(
        self, x: Tensor, heads: Heads, mixing: Mixing, before: LayerState
    ) -> tuple[Weighted, LayerState]:
        i, forget, share = self._logarithms(x, self.share)
        log_forget = functional.logsigmoid(forget)
        present = (heads.k, heads.v, i, log_forget)
        behind = before.get("window") or tuple(zeros_before(part, self.shape.window) for part in present)
        sinks = before.get("sinks") or tuple(zeros_before(part, self.shape.sinks) for part in (heads.k, heads.v))
        near, sinks = self._window(heads, behind, sinks, mixing)
        late, waiting = zip(*map(delayed, behind, present), strict=True)
        far, memory = self._behind_window(heads.q, late, mixing, before.get("memory"))
        far = far._replace(log_scale=far.log_scale + share)
        return added(near, far), {"memory": memory, "window": waiting, "sinks": sinks}

    def _window(
        self, heads: Heads, behind: tuple[Tensor, ...], sinks: tuple[Tensor, ...], mixing: Mixing
    ) -> tuple[Weighted, tuple[Tensor, ...]]:
        """The window's and the sinks' sums, and the sinks of the documents that the sequence ends in."""
        angles, (q, k, v) = mixing.angles, heads
        assert angles is not None
        if mixing.window_mask is not None:
            q, k = self._rotated(q, angles.here), self._rotated(k, angles.here)
            return window_flex.window(q, k, v, mixing.window_mask, self.scaling), ()
        chunk = chunk_size(self.shape.window, q.shape[2])
        sink_k, sink_v = (sinks_by_chunk(new, old, mixing.place, chunk) for new, old in zip((k, v), sinks, strict=True))
        inputs = WindowInputs(
            self._rotated(q, angles.here),
            torch.cat([self._rotated(behind[0].to(k.dtype), angles.behind), self._rotated(k, angles.here)], dim=2),
            torch.cat([behind[1].to(v.dtype), v], dim=2),
            self._rotated(q, angles.capped),
            self._rotated(sink_k.flatten(1, 2), angles.sinks).view_as(sink_k),
            sink_v,
            mixing.place,
        )
        run = naive.window if self.kernels == "naive" else window
        sums = run(inputs, self.shape.window, self.scaling)
        return sums, tuple(self._sinks_after(new, old, mixing) for new, old in zip((k, v), sinks, strict=True))

    def _sinks_after(self, new: Tensor, old: Tensor, mixing: Mixing) -> Tensor:
        """Sinks (B, K, s, D) of the document at the end; arbitrary where they are still to come."""
        known = torch.cat([old.to(new.dtype), new], dim=2)
        last = mixing.place[:, -1:]
        number = torch.arange(self.shape.sinks, device=new.device)
        index = new.shape[2] - 1 - last + number
        slot = torch.where(index < 0, number, self.shape.sinks + index)
        slot = slot.clamp(max=known.shape[2] - 1)[:, None, :, None].expand(-1, known.shape[1], -1, known.shape[3])
        return known.gather(2, slot)

    def _behind_window(
        self, q: Tensor, late: tuple[Tensor, ...], mixing: Mixing, memory: tuple[Tensor, ...] | None
    ) -> tuple[Weighted, Memory]:
        """The recurrence over what has left the window and is no sink, as late as it leaves."""
        k, v, i, log_forget = late
        place = torch.cat([mixing.place_behind, mixing.place], dim=1)[:, : q.shape[2]]
        i = i.masked_fill((place < self.shape.sinks)[:, None], NOTHING)
        inputs = HeadInputs(*self._features(q, k), v, i, log_forget)
        sums, after = self._recur(inputs, memory, place, mixing)
        seen = (mixing.place >= self.shape.window + self.shape.sinks)[:, None]
        values, weight = sums.values.masked_fill(~seen[..., None], 0), sums.weight.masked_fill(~seen, 0)
        return Weighted(values, weight, sums.log_scale.masked_fill(~seen, NOTHING)), after

    def _recur(
        self, inputs: HeadInputs, memory: tuple[Tensor, ...] | None, place: Tensor | None, mixing: Mixing
    ) -> tuple[Weighted, Memory]:
        before = None if memory is None else Memory(*(part.to(inputs.i.dtype) for part in memory))
        if self.kernels == "auto" and recurrence_fused.fits(inputs, before):
            return recurrence_fused.recurrence(inputs, before, place, wants_memory=mixing.after is not None)
        run = naive.recurrence if self.kernels == "naive" else recurrence
        return run(inputs, before, None if place is None else place == 0)

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, H, T, F) of queries and keys: softmax(W x) and softmax(-W x), in their type."""
        k = self._for_each_head(k)
        return _softmaxes(q, self.q_features), _softmaxes(k, self.k_features)

    def _logarithms(self, x: Tensor, *others: nn.Linear) -> tuple[Tensor, ...]:
        """What the gates' and the other linear layers give, one product for all: (B, ·, T), float32 or wider.

        They are logarithms, so they are added up no narrower; the biases, which are large, are added there.
        """
        linears = (self.input_gate, self.forget_gate, *others)
        wide = torch.promote_types(x.dtype, torch.float32)
        products = functional.linear(x, torch.cat([linear.weight for linear in linears]).to(x.dtype))
        found = products.to(wide) + torch.cat([linear.bias for linear in linears]).to(wide)
        return torch.split(found.transpose(1, 2), [linear.out_features for linear in linears], dim=1)

    def _convolved(self, heads: Heads, mixing: Mixing, before: LayerState) -> tuple[Heads, tuple[Tensor]]:
        flat = [x.transpose(1, 2).flatten(2) for x in heads]
        sizes = [x.shape[-1] for x in flat]
        y, after = causal_conv(
            self.convolution, torch.cat(flat, dim=-1), before.get("convolution"), mixing.document_start
        )
        split = (torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2) for x in torch.split(y, sizes, dim=-1))
        return Heads(*split), after


def _softmaxes(x: Tensor, weight: Tensor) -> Tensor:
    z = (x @ weight.to(x.dtype)).to(torch.promote_types(x.dtype, torch.float32))
    return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1).to(x.dtype)
