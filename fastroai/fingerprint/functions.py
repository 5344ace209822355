"""The code of functions from their source, the same on every machine and Python version."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import itertools
import json
import linecache
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, cast

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
# Name and first line (of the first decorator, where there is one) of a function.
_Place = tuple[str, int]

# Says how the text is laid out or checked, never what it does. Empty fields differ between Python
# versions.
_LAYOUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


@dataclass(frozen=True)
class Reference:
    """One use of a name that a function does not bind itself.

    Attributes:
        attributes: What is taken of it: `("SYSTEM",)` for `prompts.SYSTEM`.
        is_called: Whether what is found there is called, and goes nowhere else.
    """

    attributes: tuple[str, ...]
    is_called: bool


@dataclass(frozen=True)
class LocalImport:
    """A name that a function imports itself.

    Attributes:
        bound: The name it gets in the function.
        module: The module, with a leading dot for each level of a relative import.
        name: What is taken of the module; None for the module itself.
    """

    bound: str
    module: str
    name: str | None


@dataclass(frozen=True)
class FunctionSource:
    """What a function does, as far as its own text says.

    Attributes:
        identity: Digest of the text without comments, layout, docstring and the function's own
            decorators, which show in what the name is bound to. Without a source, of the compiled
            code, which differs between minor versions of Python.
        globals: Names it reads from its module, sorted.
        references: How these and the names of its closure are used; none where there is no source.
        rebound: Names whose binding it changes (`nonlocal`, `global`): state, no part of its
            definition.
        imports: What it imports itself.
    """

    identity: str
    globals: tuple[str, ...]
    references: Mapping[str, tuple[Reference, ...]]
    rebound: frozenset[str]
    imports: tuple[LocalImport, ...] = ()


@dataclass
class _Module:
    """A module's source, parsed."""

    lines: list[str]
    nodes: dict[_Place, list[_Function]] = field(default_factory=dict)
    codes: dict[_Place, list[CodeType]] = field(default_factory=dict)
    state: frozenset[str] = frozenset()


def source_of(code: CodeType, module: dict[str, Any]) -> FunctionSource:
    """Tell what a function does from its code and the globals it was defined in."""
    linecache.lazycache(code.co_filename, module)  # for modules that are not plain files
    return source_lines_of(code)


def rebound_globals(code: CodeType) -> frozenset[str]:
    """Names of a function's module that some function there binds anew: a module's state, not its
    definition.
    """
    return parsed_module(code.co_filename).state


@functools.lru_cache(maxsize=4096)
def source_lines_of(code: CodeType) -> FunctionSource:
    node, is_current = _find(code)
    if not is_current:
        linecache.checkcache(code.co_filename)  # the module may have been edited and loaded again
        node, is_current = _find(code)
    names = tuple(sorted(set(global_names(code))))
    if node is None:
        return FunctionSource(_digest(["compiled", plain_code(code)]), names, {}, frozenset())
    text = ["source", normalised(node)]
    if not is_current:
        # Compiled from another text than stands there now: edited since, or rewritten on import.
        text.append(plain_code(code))
    return FunctionSource(
        _digest(text), names, references_of(node), rebound_names(node), tuple(local_imports(node))
    )


def _find(code: CodeType) -> tuple[_Function | None, bool]:
    """A code's node in its module, and whether that is what the code was compiled from."""
    module = parsed_module(code.co_filename)
    place = (code.co_name, code.co_firstlineno)
    nodes = module.nodes.get(place, [])
    if len(nodes) > 1:
        nodes = [node for node in nodes if is_within(code, node)]
    if not nodes:
        return None, False
    compiled = plain_code(code)
    is_current = any(plain_code(other) == compiled for other in module.codes.get(place, ()))
    return min(nodes, key=_length), is_current  # the innermost one


# By file, parsed once for all functions in it; not an lru_cache, because a file that was edited is
# parsed again.
_modules: dict[str, _Module] = {}


def parsed_module(filename: str) -> _Module:
    lines = linecache.getlines(filename)
    known = _modules.get(filename)
    if known is None or known.lines is not lines:
        known = _modules[filename] = parse_module(filename, lines)
    return known


def parse_module(filename: str, lines: list[str]) -> _Module:
    module = _Module(lines)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse("".join(lines))
            compiled = compile(tree, filename, "exec", dont_inherit=True)
    # no Python (a template's code names the template), or not any more
    except (SyntaxError, ValueError):
        return module
    state: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            module.nodes.setdefault(place_of(node), []).append(node)
        elif isinstance(node, ast.Global):
            state.update(node.names)
    module.state = frozenset(state)
    for code in nested_codes(compiled):
        module.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
    return module


def place_of(node: _Function) -> _Place:
    if isinstance(node, ast.Lambda):
        return "<lambda>", node.lineno
    return node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested_codes(constant)


def is_within(code: CodeType, node: _Function) -> bool:
    """Whether all that a code does stands in a node's body: tells functions that begin on one line
    apart.
    """
    body = node.body if isinstance(node.body, list) else [node.body]
    first, last = body[0], body[-1]
    begin = (first.lineno, first.col_offset)
    end = (last.end_lineno or last.lineno, last.end_col_offset or 0)
    return all(begin <= start and stop <= end for start, stop in _spans(code))


def _spans(code: CodeType) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the instructions of a code begin and end, as lines and columns."""
    for position in code.co_positions():
        line, end_line, column, end_column = cast("tuple[int, int, int, int]", position)
        # Those that Python adds have no place, or one that ends where a line begins.
        if None not in position and end_column:
            yield (line, column), (end_line, end_column)


def _length(node: _Function) -> tuple[int, int]:
    return (node.end_lineno or 0) - node.lineno, (node.end_col_offset or 0) - node.col_offset


def global_names(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname.startswith("LOAD_") and instruction.opname.endswith(
            ("_GLOBAL", "_NAME", "_GLOBALS")
        ):
            yield instruction.argval
    for nested in nested_codes(code):
        yield from global_names(nested)


def normalised(node: _Function) -> object:
    """A function's node as plain lists, without what its definition line only decorates and its
    docstring.
    """
    fields = {name: value for name, value in ast.iter_fields(node) if name != "decorator_list"}
    if not isinstance(node, ast.Lambda) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    return plain_fields(node, fields)


def plain_fields(node: ast.AST, fields: Mapping[str, object]) -> object:
    kept = sorted(
        (name, value)
        for name, value in fields.items()
        if name not in _LAYOUT and value not in (None, [])
    )
    return [type(node).__name__, [[name, plain_node(value)] for name, value in kept]]


def plain_node(value: object) -> object:
    if isinstance(value, ast.Constant):
        return plain_constant(value.value)
    if isinstance(value, ast.JoinedStr):
        return ["JoinedStr", *plain_pieces(value.values)]
    if isinstance(value, ast.AST):
        return plain_fields(value, dict(ast.iter_fields(value)))
    if isinstance(value, list):
        return list(map(plain_node, value))
    return value


def plain_pieces(pieces: list[ast.expr]) -> list[object]:
    """The pieces of an f-string; Python versions cut its text differently, also into empty
    pieces.
    """
    plain: list[object] = []
    for is_text, run in itertools.groupby(pieces, is_text_piece):
        if is_text:
            text = "".join(piece.value for piece in cast("Iterator[Any]", run))
            plain += [text] if text else []
        else:
            plain += map(plain_node, run)
    return plain


def is_text_piece(piece: ast.expr) -> bool:
    return isinstance(piece, ast.Constant) and isinstance(piece.value, str)


def plain_constant(value: object) -> object:
    """A constant in the code as text and type."""
    kind = type(value)
    if kind is CodeType:
        return plain_code(cast(CodeType, value))
    return [kind.__name__, _CONTENTS.get(kind, repr)(value)]


_CONTENTS: dict[type, Callable[[Any], object]] = {
    str: str,
    int: hex,
    bytes: bytes.hex,
    tuple: lambda items: list(map(plain_constant, items)),
    # In an order that no hash seed changes.
    frozenset: lambda items: sorted(map(plain_constant, items), key=json.dumps),
}


def plain_code(code: CodeType) -> object:
    """What a compiled function does; where it stands is left out."""
    return [
        code.co_name,
        code.co_code.hex(),
        list(map(plain_constant, code.co_consts)),
        [
            list(code.co_names),
            list(code.co_varnames),
            list(code.co_freevars),
            list(code.co_cellvars),
        ],
        [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags],
    ]


def compiled_identity(code: CodeType) -> str:
    """Digest of compiled code, for what never had a source of its own; differs between minor
    versions of Python.
    """
    return _digest(["compiled", plain_code(code)])


def references_of(node: _Function) -> Mapping[str, tuple[Reference, ...]]:
    found: dict[str, set[Reference]] = {}

    def visit(current: ast.AST, is_called: bool) -> None:
        attributes: list[str] = []
        base = current
        while isinstance(base, ast.Attribute):
            attributes.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name):
            found.setdefault(base.id, set()).add(Reference(tuple(attributes), is_called))
            return
        for child in ast.iter_child_nodes(base):
            visit(child, isinstance(base, ast.Call) and child is base.func)

    for child in ast.iter_child_nodes(node):
        visit(child, is_called=False)
    return {
        name: tuple(sorted(uses, key=lambda use: (use.attributes, use.is_called)))
        for name, uses in found.items()
    }


def rebound_names(node: _Function) -> frozenset[str]:
    return frozenset(
        name
        for inner in ast.walk(node)
        if isinstance(inner, ast.Global | ast.Nonlocal)
        for name in inner.names
    )


def local_imports(node: _Function) -> Iterator[LocalImport]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            for alias in inner.names:
                yield local_import(inner, alias)


def local_import(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> LocalImport:
    if isinstance(statement, ast.ImportFrom):
        module = "." * statement.level + (statement.module or "")
        return LocalImport(alias.asname or alias.name, module, alias.name)
    if alias.asname:
        return LocalImport(alias.asname, alias.name, None)
    top = alias.name.partition(".")[0]
    return LocalImport(top, top, None)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
