"""The texts below a class's attributes, as a reader of its source finds them."""

import ast
import inspect
import itertools
import textwrap


def attribute_docs(of_class: type) -> dict[str, str]:
    """Return the text below each attribute of a class and its bases, in one line; nothing where there is no source."""
    docs: dict[str, str] = {}
    for base in reversed(of_class.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for attribute, text in itertools.pairwise(body):
            if (
                isinstance(attribute, ast.AnnAssign)
                and isinstance(attribute.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docs[attribute.target.id] = " ".join(text.value.value.split())
    return docs
