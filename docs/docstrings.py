"""The project's docstrings as reStructuredText: they are plain text with `code` in backticks."""

import re

_ARGUMENT = re.compile(r"([a-z_][\w, ]*): (.*)")


def as_rst(app, what, name, obj, options, lines):
    """Indented stretches become literal blocks, `name: text` lines a list, backticks code."""
    text, literal, listed = [], False, False
    for position, line in enumerate(lines):
        indented = line.startswith((" ", "\t"))
        after_blank = position == 0 or not lines[position - 1].strip()
        argument = None if indented else _ARGUMENT.fullmatch(line)
        if indented and after_blank and not listed and not literal:
            literal = True
            text += ["::", ""]
        elif not indented and line.strip():
            literal = False
        if literal:
            text.append(f"    {line}")
        elif argument and (after_blank or listed):
            listed = True
            text += ["", f"- ``{argument[1]}``: {_escaped(argument[2])}"]
        elif listed and indented:
            text.append(f"  {_escaped(line.strip())}")
        else:
            if listed and line.strip() and not after_blank:
                text.append("")
            listed = False if not indented else listed
            text.append(_escaped(line.strip()))
    lines[:] = text


def _escaped(line):
    """Text with its code marked, and nothing else that could be taken for markup."""
    parts = re.split(r"(`[^`]+`)", line)
    for i, part in enumerate(parts):
        code = part.startswith("`") and part.endswith("`") and len(part) > 2
        parts[i] = f"`{part}`" if code else re.sub(r"([\\*|_`])", r"\\\1", part)
    return "".join(parts)
