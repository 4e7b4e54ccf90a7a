"""What a Learner is made of, as a page: its layers with their shapes, sizes and costs, its memory, its callbacks."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

MB = 1e6
WIDEST = 44
"""The characters of an output's shape that are shown at most."""


@dataclass(frozen=True)
class LayerRow:
    """One module of a model, as it stands in a `Summary`."""

    path: str
    """Its name in the model, such as ``body.0``; empty for the model itself."""
    depth: int
    """How many modules it is in."""
    kind: str
    """The name of its class."""
    output: Any
    """The shape of what it gave last; a tuple or a dict of shapes where that is several tensors."""
    calls: int
    """How many times it was called for the batch."""
    parameters: int
    """The numbers in its own parameters: not in its children's, nor in those that stand in an earlier row."""
    trained: bool | None
    """Whether any of them is trained; None where there are none."""
    multiply_adds: float
    """Its own, not its children's, for one sample."""
    same_as: str | None
    """The path of an earlier row, where it is the same module, or where it has that one's parameters."""


@dataclass(frozen=True)
class Summary:
    """What a Learner is made of; its text is a page.

    Memory is in bytes, and for the batch that was taken where it is of a batch.
    """

    model: str
    """The name of the model's class."""
    batch: str
    """What the model was called with."""
    rows: list[LayerRow] = field(repr=False)
    """The model and the modules in it, from the outside in."""
    parameters: int
    trainable_parameters: int
    multiply_adds: float
    """For one sample. Matrix products, convolutions and attention are counted; one multiply-add is two flops."""
    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    """Of the parameters that are trained."""
    optimizer_bytes: int | None
    """Of the optimizer's averages, as they are or will be after a step; None where that cannot be known before."""
    activation_bytes: int
    """Of what the layers give for the batch, in this precision; what `forward` computes between them is not seen."""
    loss: str
    optimizer: str
    frozen: str
    """Which layers are frozen."""
    callbacks: list[str]

    def __str__(self) -> str:
        lines = [f"{self.model}, called with {self.batch}", "", *self._table(), "", *self._totals(), ""]
        lines += [f"loss: {self.loss}", f"optimizer: {self.optimizer}", f"layers: {self.frozen}"]
        return "\n".join([*lines, f"callbacks: {', '.join(self.callbacks) or 'none'}"])

    def __repr__(self) -> str:
        return str(self)  # in a notebook it is the cell's answer

    def _table(self) -> Iterator[str]:
        cells = [("layer", "output", "parameters", "trained", "multiply-adds")]
        for row in self.rows:
            name = "  " * row.depth + (f"{row.path.rpartition('.')[2]}: {row.kind}" if row.path else row.kind)
            same = f"as {row.same_as}" if row.same_as is not None else ""
            cells.append(
                (
                    name,
                    _shown(row.output) + (f" × {row.calls}" if row.calls > 1 else ""),
                    f"{row.parameters:,}" if row.parameters else same,
                    "" if row.trained is None else "yes" if row.trained else "no",
                    f"{row.multiply_adds:,.0f}" if row.multiply_adds else "",
                )
            )
        wide = [max(len(line[i]) for line in cells) for i in range(5)]
        for i, (name, output, parameters, trained, products) in enumerate(cells):
            line = f"{name:{wide[0]}}  {output:{wide[1]}}  {parameters:>{wide[2]}}  {trained:{wide[3]}}"
            yield f"{line}  {products:>{wide[4]}}".rstrip()
            if i == 0:
                yield "─" * (sum(wide) + 8)

    def _totals(self) -> Iterator[str]:
        fixed = self.parameters - self.trainable_parameters
        yield f"parameters: {self.parameters:,}, of these {self.trainable_parameters:,} trained and {fixed:,} not"
        yield f"multiply-adds: {_large(self.multiply_adds)} a sample (one is two flops)"
        parts = {
            "parameters": self.parameter_bytes,
            "buffers": self.buffer_bytes,
            "gradients": self.gradient_bytes,
            "optimizer": self.optimizer_bytes,
            "activations of this batch": self.activation_bytes,
        }
        shown = [f"{name} {'unknown' if size is None else f'{size / MB:,.2f}'}" for name, size in parts.items()]
        yield f"memory in MB: {', '.join(shown)}"


def _shown(shape: Any) -> str:
    """A shape, or several, in a line of at most `WIDEST` characters."""
    text = _text(shape)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _text(shape: Any) -> str:
    if shape is None:
        return ""
    if isinstance(shape, torch.Size):
        return str(tuple(shape))
    if isinstance(shape, Mapping):
        return "{" + ", ".join(f"{key}: {_text(part)}" for key, part in shape.items()) + "}"
    return "(" + ", ".join(_text(part) or "–" for part in shape) + ")"


def _large(number: float) -> str:
    """A count, in thousands, millions or more where it is that large.

    >>> _large(1_234_567), _large(42)
    ('1.23 million', '42')
    """
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:,.2f} {name}"
    return f"{math.floor(number + 0.5):,}"
