"""What the graph in an exported model may hold: torch makes Python code of it when it loads one, and runs that code.

A .pt2 file describes a graph in JSON. torch puts names of it into the text of a function, hands its sizes to sympy,
which evaluates text, looks operators up by name, and runs guards, which are text too. So every text in it must have
the form that its place asks for, and every operator must be one that computes with tensors and does nothing else.
"""

import json
import keyword
import re
from typing import Any

import torch

MAX_DEPTH = 100
"""How deep the JSON may be nested; a graph of torch's has about ten levels, one within another a few more."""

PLAIN = re.compile(r"[A-Za-z0-9_.+-]{0,400}")
"""What a text may be where nothing else is said: a name, a version, a number."""
EQUATION = re.compile(r"[A-Za-z0-9_., >-]{0,400}")
"""What an operator's text argument may be: a mode, or the equation of an einsum."""
EXPRESSION = re.compile(r"(?:[A-Za-z]\w*|\d{1,20}(?:\.\d{1,20})?|[-+*/(),=<> ])*")
"""The letters of a size's expression; its words are looked at one by one, and ``**`` is refused."""
WORDS = {
    "Symbol", "Integer", "Add", "Mul", "Rational", "Max", "Min", "FloorDiv", "CeilDiv", "CleanDiv", "Mod", "PythonMod",
    "ModularIndexing", "CeilToInt", "FloorToInt", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "ToFloat", "Identity",
    "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "GreaterThan", "StrictGreaterThan", "LessThan", "StrictLessThan", "Equality",
    "Unequality", "And", "Or", "Not", "True", "False", "positive", "integer", "nonnegative", "evaluate",
}  # fmt: skip
"""What an expression of sizes may call, beside its symbols."""
SYMBOL = re.compile(r"[suz]\d{1,9}")
QUOTED = re.compile(r"Symbol\('([suz]\d{1,9})'")

KINDS = {
    "as_bool", "as_bools", "as_complex", "as_device", "as_expr", "as_float", "as_floats", "as_graph", "as_int",
    "as_int_lists", "as_ints", "as_layout", "as_memory_format", "as_name", "as_nested_tensors", "as_none",
    "as_optional_tensor", "as_optional_tensors", "as_scalar_type", "as_string", "as_strings", "as_sym_bool",
    "as_sym_bools", "as_sym_float", "as_sym_floats", "as_sym_int", "as_sym_ints", "as_tensor", "as_tensors",
}  # fmt: skip
"""The kinds of values in a graph, without objects of classes and operators as values."""
EMPTY = ("metadata", "guards_code", "custom_obj_values", "treespec_namedtuple_fields")
"""What must hold nothing: traces of the source, code that guards the inputs, objects."""
FORBIDDEN = ("custom_obj", "token")
NAMES = ("name", "forward_arg_names")
TREES = ("in_spec", "out_spec")
TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")

UNLIKE_OTHERS = {"from_file", "save", "warn", "record_stream", "set", "set_", "resize_", "resize_as_", "rename_"}
"""Operators of aten that read or write files, print, or change what a tensor's memory is."""
UNDERSCORED = {
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_log_softmax", "_softmax", "_to_copy",
    "_unsafe_view",
}  # fmt: skip
"""Those of aten's inner operators that exported graphs have; others trust their caller, and are refused."""
ARITHMETIC = {
    *(f"_operator.{n}" for n in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "and_", "or_")),
    *(f"_operator.{n}" for n in ("eq", "ne", "ge", "gt", "le", "lt", "getitem")),
    *(f"torch.sym_{n}" for n in ("max", "min", "int", "float", "not", "ite", "sum")),
    *(f"math.{n}" for n in ("ceil", "floor", "trunc")),
    *(f"torch.ops.higher_order.{n}" for n in ("wrap_with_set_grad_enabled", "wrap_with_autocast")),
}  # fmt: skip
"""What a graph calls beside aten: sizes' arithmetic, and parts without gradients or in mixed precision."""


ITEM_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2, 29: 1, 30: 1, 31: 1,
    32: 1, 33: 1, 34: 4, 35: 8,
}  # fmt: skip
"""How many bytes an element has, by its dtype's number. Source: torch 2.13, `ScalarType` in its graphs' schema."""


class Unfit(Exception):  # noqa: N818 -- its text goes on from the file's name
    """Why a graph is not loaded."""


def without_traces(graph: Any) -> Any:
    """A graph without what is not needed to run it: where in which source each operator came from, and guards."""
    if isinstance(graph, dict):
        blank: dict[str, Any] = {"metadata": {}, "guards_code": [], "treespec_namedtuple_fields": {}}
        return {name: blank.get(name, without_traces(part)) for name, part in graph.items()}
    return [without_traces(part) for part in graph] if isinstance(graph, list) else graph


def check_graph(text: bytes) -> Any:
    """A graph's JSON, every text of which has the form that it should have.

    Raises:
        Unfit: it is no JSON, or holds what a model's graph does not need.
    """
    graph = _json(text)
    if not isinstance(graph, dict) or not {"graph_module", "range_constraints", "opset_version"} <= set(graph):
        raise Unfit("its graph is none")
    _check(graph, "", 0)
    return graph


def check_weights(text: bytes, members: dict[str, int], prefix: str) -> Any:
    """The JSON that says which tensor lies in which member; all are plain bytes, and none is larger than its member.

    Args:
        text: the JSON.
        members: the sizes in bytes of the members, by name.
        prefix: how the members' names begin.
    Raises:
        Unfit: a tensor is a pickle, or does not lie within its member.
    """
    config = _json(text)
    _check(config, "", 0)
    try:
        for name, about in config["config"].items():
            if about["use_pickle"] is not False:
                raise Unfit(f"{name[:80]} is a pickle, and a file is never code")
            _check_extent(name, about["tensor_meta"], members.get(prefix + about["path_name"]))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise Unfit(f"its list of tensors is damaged: {type(error).__name__} {error!s:.80}") from None
    return config


def _check_extent(name: str, meta: dict[str, Any], there: int | None) -> None:
    def numbers(values: list[dict[str, int]]) -> list[int]:
        found = [value["as_int"] for value in values]
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in found):
            raise Unfit(f"{name[:80]} has a shape that is none")
        return found

    shape, stride = numbers(meta["sizes"]), numbers(meta["strides"])
    (offset,) = numbers([meta["storage_offset"]])
    itemsize = ITEM_BYTES[meta["dtype"]]
    if there is None or len(shape) != len(stride):
        raise Unfit(f"{name[:80]} is not in the file")
    size = 1
    for n in shape:
        size *= n
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if there % itemsize or (size and max(last + 1, size) * itemsize > there):
        raise Unfit(f"{name[:80]} of shape {shape[:8]} is larger than its {there} bytes in the file")


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unfit("one of its texts is no JSON") from None


def _check(value: Any, place: str, depth: int) -> None:
    """Looks through all of a value; `place` is the name under which it stands."""
    if depth > MAX_DEPTH:
        raise Unfit("its graph is nested too deep")
    if place in EMPTY and value:
        raise Unfit(f"it has {place}, which can be code: export the model by learn.export")
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, list):
        for part in value:
            _check(part, place, depth + 1)
    elif isinstance(value, dict):
        for name, part in value.items():
            _check_text(name, "")
            if (name.startswith("as_") and name not in KINDS) or (name in FORBIDDEN and part is not None):
                raise Unfit(f"it has a value of the kind {name[:40]}, which can be code")
            _check(part, name, depth + 1)


def _check_text(text: str, place: str) -> None:
    if place == "expr_str":
        _check_expression(text)
    elif place == "target":
        _check_operator(text)
    elif place in TREES:
        _check_tree(_json(text.encode(errors="replace")), 0)
    elif place in NAMES:
        if not (text.isascii() and text.isidentifier()) or keyword.iskeyword(text) or text.startswith("__"):
            raise Unfit(f"it has the name {text[:80]!r}")
    elif not (EQUATION if place in ("as_string", "as_strings") else PLAIN).fullmatch(text):
        raise Unfit(f"it has the text {text[:80]!r}{f' as {place[:40]}' if place else ''}")


def _check_expression(text: str) -> None:
    plain = QUOTED.sub(r"Symbol(\1", text)
    words = re.findall(r"[A-Za-z]\w*", plain)
    odd = [word for word in words if word not in WORDS and not SYMBOL.fullmatch(word)]
    if len(text) > 10_000 or "**" in plain or "__" in plain or odd or not EXPRESSION.fullmatch(plain):
        raise Unfit(f"it has a size of {text[:80]!r}")


def _check_operator(text: str) -> None:
    if text in ARITHMETIC:
        return
    namespace, _, rest = text.rpartition("torch.ops.aten.")
    name, _, overload = rest.partition(".")
    inner = name.startswith("_") and name not in UNDERSCORED
    if namespace or inner or name in UNLIKE_OTHERS or not name.isidentifier() or not overload.isidentifier():
        raise Unfit(f"it calls {text[:80]!r}, which is no operator that only computes")
    if not isinstance(getattr(getattr(torch.ops.aten, name, None), overload, None), torch._ops.OpOverload):
        raise Unfit(f"it calls {text[:80]!r}, which this torch {torch.__version__} does not have")


def _check_tree(tree: Any, depth: int) -> None:
    """The form of inputs and outputs: tuples, lists and dicts with plain keys."""
    if isinstance(tree, list) and len(tree) == 2 and tree[0] == 1 and depth == 0:
        tree = tree[1]
    if depth > MAX_DEPTH or not isinstance(tree, dict) or set(tree) != {"type", "context", "children_spec"}:
        raise Unfit("its inputs or outputs have a form that is none")
    context = tree["context"]
    keys = _json(context.encode()) if isinstance(context, str) else None
    plain = keys is None or (isinstance(keys, list) and all(type(k) is str and PLAIN.fullmatch(k) for k in keys))
    if tree["type"] not in TREE_TYPES or not plain or not isinstance(tree["children_spec"], list):
        raise Unfit("its inputs or outputs are of a type beside tuple, list and dict")
    for child in tree["children_spec"]:
        _check_tree(child, depth + 1)
