"""The script that completes in fish."""

from __future__ import annotations

from itwinai.cli.completion.commands import Command, Flag, Values, walk

_HEAD = """# Completes itwinai in fish.

function __itwinai_path  # the commands among the words before the cursor
    set -l path
    for word in (commandline -opc)[2..]
        set -l longer (string trim -- "$path $word")
        contains -- "$longer" $__itwinai_paths; and set path $longer
    end
    echo $path
end

function __itwinai_at
    contains -- (__itwinai_path) $argv
end
"""


def script(root: Command) -> str:
    """Return the script.

    Args:
        root: what can be typed.
    """
    commands = walk(root)
    paths = [" ".join(path) for path, _ in commands if path]
    lines = [f"set -g __itwinai_paths {' '.join(map(_quoted, paths))}", "complete -c itwinai -f"]
    flags: dict[Flag, list[str]] = {}
    for path, command in commands:
        at = _condition([" ".join(path)])
        for one in command.commands:
            lines.append(f"complete -c itwinai {at} -a {one.name} -d {_quoted(_plain(one.text))}")
        if arguments := _values(command.values):
            lines.append(f"complete -c itwinai {at} {arguments}")
        for flag in command.flags:
            flags.setdefault(flag, []).append(" ".join(path))
    for flag, where in flags.items():
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
        value = "" if flag.values is None else f" -r {_values(flag.values)}".rstrip()
        lines.append(f"complete -c itwinai {_condition(where)} {names}{value} -d {_quoted(_plain(flag.text))}")
    return _HEAD + "\n".join(lines)


def _condition(paths: list[str]) -> str:
    return "-n " + _quoted("__itwinai_at " + " ".join(f'"{path}"' for path in paths))


def _values(values: Values) -> str:
    """Return the options of `complete` for a value."""
    words = " ".join(values.words)
    if values.words and values.separator:
        command = f"printf %s\\\\n {words}"
        return f"-f -a {_quoted(f'(__fish_complete_list {values.separator} {_quoted(command)})')}"
    offered = [words] if words else []
    if values.files and values.endings:
        offered += [f"(__fish_complete_suffix .{ending})" for ending in values.endings]
        return f"-f -k -a {_quoted(' '.join(offered))}"  # -k: those that end so come first
    return f"{'-F' if values.files else '-f'}{f' -a {_quoted(words)}' if words else ''}"


def _plain(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:87]}..."


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
