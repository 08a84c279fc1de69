"""The script that completes in zsh."""

from __future__ import annotations

from itwinai.cli.completion.commands import Command, Flag, Values, walk

_HEAD = """#compdef itwinai
# Completes itwinai in zsh.
"""

_FOOT = """
if [[ $funcstack[1] == _itwinai ]]; then
  _itwinai "$@"
else
  compdef _itwinai itwinai
fi
"""


def script(root: Command) -> str:
    """Return the script.

    Args:
        root: what can be typed.
    """
    parts = [_function(path, command) for path, command in walk(root)]
    return "\n".join([_HEAD, *parts, _FOOT]).rstrip()


def _function(path: tuple[str, ...], command: Command) -> str:
    """Return the function that completes a command."""
    name = _name(path)
    specs = [_quoted(spec) for flag in command.flags for spec in _specs(flag)]
    if not command.commands:
        action = _action(command.values)
        specs += [_quoted(f"*: :{action}")] if action else []
        return "\n".join(
            [f"{name}() {{", "  _arguments -S : \\", *(f"    {one} \\" for one in specs), "    && return", "}"]
        )
    rows = [_quoted(f"{one.name}:{_plain(one.text)}") for one in command.commands]
    rows += [_quoted(word) for word in command.values.words]
    below = [f"        {one.name}) {_name((*path, one.name))} ;;" for one in command.commands]
    # `words` and `CURRENT` are zsh's: below, they begin with the command that was found.
    return "\n".join(
        [
            f"{name}() {{",
            "  local curcontext=$curcontext context state line ret=1",
            "  typeset -A opt_args",
            "  _arguments -C -S : \\",
            *(f"    {one} \\" for one in specs),
            "    '1: :->command' '*:: :->rest' && ret=0",
            "  case $state in",
            "    command)",
            f"      local -a commands=({' '.join(rows)})",
            "      _describe command commands && ret=0 ;;",
            "    rest)",
            "      case $words[1] in",
            *below,
            "      esac && ret=0 ;;",
            "  esac",
            "  return ret",
            "}",
        ]
    )


def _name(path: tuple[str, ...]) -> str:
    return "_".join(["_itwinai", *(word.replace("-", "_") for word in path)])


def _specs(flag: Flag) -> list[str]:
    """Return what `_arguments` is told of a flag: it may be given again, and its value after a space or =."""
    text = _plain(flag.text).replace("[", "(").replace("]", ")")
    found = []
    for name in flag.names:
        if flag.values is None:
            found.append(f"*{name}[{text}]")
        else:
            equals = "=" if name.startswith("--") else ""
            found.append(f"*{name}{equals}[{text}]:value:{_action(flag.values) or ' '}")
    return found


def _action(values: Values) -> str:
    """Return the action that completes a value."""
    words = " ".join(values.words)
    if values.words and values.separator:
        return f"_values -s {values.separator} value {words}"
    if not values.files:
        return f"({words})" if words else ""
    pattern = f" -g '*.({'|'.join(values.endings)})'" if values.endings else ""
    if not words:
        return f"_files{pattern}"
    return f"{{compadd -- {words}; _files{pattern}}}"


def _plain(text: str) -> str:
    short = text if len(text) <= 90 else f"{text[:87]}..."
    return short.replace("\\", "").replace(":", ",").replace("`", "")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
