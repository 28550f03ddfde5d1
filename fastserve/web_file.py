"""A route's file, looked at without running it: is it there, is it Python, does it have its functions?

Used by `fastserve check`, which must not run what it checks. Reads one file; any thread.
"""

from __future__ import annotations

import ast

HOOKS = ("preprocess", "postprocess")


def look_at(file: str) -> str:
    """What stands in the way of serving with it, in words; "" when nothing is seen to."""
    try:
        with open(file, "rb") as opened:
            tree = ast.parse(opened.read(), file)
    except OSError as error:
        return f"{file}: {error.strerror}"
    except SyntaxError as error:
        return f"{file}:{error.lineno or 1}: {error.msg}"
    except ValueError as error:  # null bytes
        return f"{file}: {error}"
    names = _names(tree.body)
    missing = [f"{name}()" for name in HOOKS if name not in names]
    if missing and "*" not in names:
        return (
            f"{file}: has no {' and no '.join(missing)}: "
            "expected preprocess(request) and postprocess(outputs, request)"
        )
    return ""


def _names(body: list[ast.stmt]) -> set[str]:
    """What a module's statements may define, those under if, try and with included."""
    names: set[str] = set()
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
                for part in ("body", "orelse", "finalbody"):
                    names |= _names(getattr(statement, part, []))
                for handler in getattr(statement, "handlers", []):
                    names |= _names(handler.body)
    return names
