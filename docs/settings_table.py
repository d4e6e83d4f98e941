"""A directive that draws the options of a settings dataclass as a table, from its declaration alone."""

import dataclasses
import re
from importlib import import_module

from docutils import nodes
from docutils.parsers.rst import Directive


def descriptions(kind):
    """Field → its description in the docstring of the dataclass."""
    text = re.search(r"Args:\n(.*?)\n\s*\n", f"{kind.__doc__}\n\n", re.DOTALL)[1]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in entries}


def allowed(field):
    """The range or the choices of a field, in words."""
    about = field.metadata
    choices = getattr(about["option"], "__args__", None) or getattr(field.type, "__args__", (None,))
    if all(isinstance(choice, str) for choice in choices):
        return ", ".join(choices)
    if about["low"] is None:
        return ""
    low, high = about["low"], about["high"]
    if high >= 10**6:
        return f"above {low:g}" if about["above"] else f"{low:g} or more"
    return f"between {low:g} and {high:g}" if about["above"] else f"{low:g} to {high:g}"


class SettingsTable(Directive):
    """`settings-table:: condgen.training.settings.Training`."""

    required_arguments = 1

    def run(self):
        module, name = self.arguments[0].rsplit(".", 1)
        kind = getattr(import_module(module), name)
        said = descriptions(kind)
        rows = [("setting", "usual value", "range", "what it is")]
        for field in dataclasses.fields(kind):
            usual = "–" if field.default is None else str(field.default)
            rows.append((field.name, usual, allowed(field), said[field.name]))
        table, group = nodes.table(), nodes.tgroup(cols=4)
        table += group
        for width in (15, 12, 18, 55):
            group += nodes.colspec(colwidth=width)
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        for k, row in enumerate(rows):
            entry = nodes.row()
            for column, text in enumerate(row):
                cell = nodes.entry()
                cell += nodes.paragraph("", "", nodes.literal(text=text) if k and not column else nodes.Text(text))
                entry += cell
            (body if k else head).append(entry)
        return [table]


def setup(app):
    app.add_directive("settings-table", SettingsTable)
    return {"parallel_read_safe": True}
