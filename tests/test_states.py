"""State taken apart and put together again: exact, and an error that names the place of what cannot be saved."""

import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from minilearn.states import flatten_state, unflatten_state


def there_and_back(state: Any) -> Any:
    plain, tensors = flatten_state(state)
    return unflatten_state(json.loads(json.dumps(plain, allow_nan=False)), tensors)


PLAIN = {
    "ints": [0, -1, 2**100, True, False],
    "floats": (0.1, -0.0, 1e-320, math.inf, -math.inf),
    "text": "naïve \ud800 \x00",
    "nothing": None,
    "deep": {"a": [({"b": ()},)], "": []},
    "keys": {0: "int", "0": "text", 1.5: "float", None: "none", (1, "x"): "tuple", math.inf: "inf"},
    "tuple": {"tuple": [1]},
    "tensor": {"tensor": "x"},
}


def same_types(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(
            same_types(x, y) and same_types(a[x], b[y]) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_types, a, b))
    return True


def test_plain_values_come_back_as_they_were() -> None:
    back = there_and_back(PLAIN)
    assert back == PLAIN
    assert same_types(back, PLAIN)
    assert math.copysign(1, back["floats"][1]) == -1


def test_nan_comes_back_as_nan() -> None:
    assert math.isnan(there_and_back(math.nan))


def test_tensors_anywhere_come_back_in_their_places() -> None:
    a, b = torch.ones(2), torch.zeros(3)
    back = there_and_back({"state": {0: {"a": a}, 1: [b, (a,)]}})
    assert torch.equal(back["state"][0]["a"], a)
    assert torch.equal(back["state"][1][0], b)
    assert torch.equal(back["state"][1][1][0], a)


def test_names_are_places() -> None:
    _, tensors = flatten_state({"state": {0: {"mom": torch.ones(2)}}, "lr": torch.tensor(0.1)}, "optimizer")
    assert list(tensors) == ["optimizer.state.0.mom", "optimizer.lr"]


def test_names_that_would_be_the_same_are_told_apart() -> None:
    state = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, "__metadata__": torch.full((1,), 7.0)}
    _, tensors = flatten_state(state)
    assert len(tensors) == 3
    assert "__metadata__" not in tensors
    back = there_and_back(state)
    assert (back["a.b"], back["a"]["b"], back["__metadata__"]) == (1, 0, 7)


def test_a_tensor_that_is_there_twice_is_taken_once() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    plain, tensors = flatten_state({"first": weight, "second": weight.detach(), "part": weight[0]})
    assert list(tensors) == ["first", "part"]
    back = unflatten_state(plain, tensors)
    assert back["first"] is back["second"]


def test_empty_tensors_are_not_taken_for_one() -> None:
    assert list(flatten_state([torch.ones(0), torch.ones(0)])[1]) == ["0", "1"]


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Odd(), r"groups\.1\.x is of type .*Odd"),
        (np.float64(1.0), r"groups\.1\.x is of type numpy\.float64"),
        ({1, 2}, r"groups\.1\.x is of type set"),
        (b"bytes", r"groups\.1\.x is of type bytes"),
        (OrderedDict(), r"groups\.1\.x is of type collections\.OrderedDict"),
        (torch.Size([1]), r"groups\.1\.x is of type torch\.Size"),
        (len, r"groups\.1\.x is of type builtin"),
        ({b"k": 1}, r"groups\.1\.x has a key of type bytes"),
        ({(1, Odd): 1}, r"groups\.1\.x has a key of type type"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(value: Any, named: str) -> None:
    with pytest.raises(TypeError, match=named):
        flatten_state({"groups": [{}, {"x": value}]})


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": 2},
        {},
        {"call": "os.system"},
        {"tensor": "gone"},
        {"tensor": [1]},
        {"float": "1.5"},
        {"float": []},
        {"tuple": {"dict": {}}},
        {"dict": []},
        {"items": {"a": 1}},
        {"items": [[1, 2, 3]]},
        {"items": [[[], 1]]},
        {"items": [[{"tensor": "x"}, 1]]},
        [{"dict": {"a": {"b": 1}}}],
        object(),
    ],
)
def test_a_value_that_no_state_gives_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match="state"):
        unflatten_state(value, {"x": torch.ones(1)})
