"""The script that completes in bash."""

from __future__ import annotations

from itwinai.cli.completion.commands import Command, Values, walk

_HEAD = r"""# Completes itwinai in bash, from 3.2 on.

_itwinai_words() {  # the words that begin with what is typed
  local IFS=$'\n'
  COMPREPLY+=($(compgen -W "${1// /$'\n'}" -- "$cur"))
}

_itwinai_list() {  # the same for the last of several words, with a separator between
  local before=""
  if [[ $cur == *"$1"* ]]; then before="${cur%"$1"*}$1"; fi
  local IFS=$'\n'
  COMPREPLY+=($(compgen -P "$before" -W "${2// /$'\n'}" -- "${cur#"$before"}"))
  type compopt &> /dev/null && compopt -o nospace
}

_itwinai_files() {  # folders, and files with some endings, or all
  local IFS=$'\n' ending
  type compopt &> /dev/null && compopt -o filenames
  if [[ $# == 0 ]]; then COMPREPLY+=($(compgen -f -- "$cur")); return; fi
  COMPREPLY+=($(compgen -d -- "$cur"))
  for ending in "$@"; do COMPREPLY+=($(compgen -f -X "!*.$ending" -- "$cur")); done
}

_itwinai() {
  local cur="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" path="" place
  COMPREPLY=()
  # bash takes --flag=value for three words.
  if [[ $cur == "=" ]]; then
    cur=""
  elif [[ $previous == "=" ]]; then
    previous="${COMP_WORDS[COMP_CWORD-2]}"
  fi
  for ((place = 1; place < COMP_CWORD; place++)); do
    case "$path ${COMP_WORDS[place]}" in
"""


def script(root: Command) -> str:
    """Return the script.

    Args:
        root: what can be typed.
    """
    commands = walk(root)
    paths = " | ".join(f'"{"".join(f" {word}" for word in path)}"' for path, _ in commands if path)
    lines = [f'      {paths}) path="$path ${{COMP_WORDS[place]}}" ;;', "    esac", "  done"]
    lines += ['  case "$path:$previous" in']
    actions: dict[Values, list[str]] = {}
    for path, command in commands:
        for flag in command.flags:
            if flag.values is not None:
                key = "".join(f" {word}" for word in path)
                actions.setdefault(flag.values, []).extend(f'"{key}:{name}"' for name in flag.names)
    for values, keys in actions.items():
        lines.append(f"    {' | '.join(keys)}) {_action(values)}return ;;")
    lines += ["  esac", '  case "$path" in']
    for path, command in commands:
        names = " ".join(name for flag in command.flags for name in flag.names)
        words = " ".join([*(one.name for one in command.commands), *command.values.words])
        plain = _action(Values(tuple(words.split()), files=command.values.files, endings=command.values.endings))
        lines += [
            f'    "{"".join(f" {word}" for word in path)}")',
            f'      if [[ $cur == -* ]]; then _itwinai_words "{names}"; else {plain or ": ;"} fi ;;',
        ]
    lines += ["  esac", "}", "", "complete -F _itwinai itwinai"]
    return _HEAD + "\n".join(lines)


def _action(values: Values) -> str:
    """Return commands that add what completes a value, each with a semicolon behind."""
    text = ""
    if values.words and values.separator:
        text += f"_itwinai_list '{values.separator}' '{' '.join(values.words)}'; "
    elif values.words:
        text += f"_itwinai_words '{' '.join(values.words)}'; "
    if values.files:
        text += f"_itwinai_files {' '.join(values.endings)}".rstrip() + "; "
    return text
