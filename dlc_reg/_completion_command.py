"""`dlc-reg completion`: a script that completes commands, options and their choices in a shell.

It is written out whole, and asks nothing back: click's own completion would start Python, and so torch, at every key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import click

SHELLS = ("bash", "zsh", "fish")
BASH = """\
_dlc_reg() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [[ $COMP_CWORD == 1 ]]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}} $before" in
{choices}
      *)
        case "${{COMP_WORDS[1]}} $word" in
{words}
        esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _dlc_reg dlc-reg
"""
ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


class Described(NamedTuple):
    """A parameter as a shell needs it; an argument has no names."""

    names: list[str]
    choices: list[str]
    takes_value: bool
    help: str


@click.command("completion", short_help="Print a script that completes commands and options.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Prints a script that completes commands, options and their choices in SHELL; all else completes as files.

    \b
    bash  eval "$(dlc-reg completion bash)"      in ~/.bashrc
    zsh   eval "$(dlc-reg completion zsh)"       in ~/.zshrc, after compinit
    fish  dlc-reg completion fish > ~/.config/fish/completions/dlc-reg.fish

    A shell starts sooner with the script in a file, which is to be made anew with each version.
    """
    root = context.find_root()
    click.echo(_fish(root) if shell == "fish" else ZSH * (shell == "zsh") + _bash(root), nl=False)


def _commands(root: click.Context) -> Iterator[tuple[str, str, list[Described]]]:
    """(name, one line of help, parameters) of each command."""
    assert isinstance(root.command, click.Group)
    for name, command in root.command.commands.items():
        context = click.Context(command, parent=root)
        yield name, command.get_short_help_str(80), list(_described(command.get_params(context), context))


def _described(parameters: list[click.Parameter], context: click.Context) -> Iterator[Described]:
    for parameter in parameters:
        choices = [str(item.value) for item in parameter.shell_complete(context, "") if item.type == "plain"]
        if isinstance(parameter, click.Option):
            names = [*parameter.opts, *parameter.secondary_opts]
            yield Described(names, choices, not parameter.is_flag, parameter.help or "")
        elif choices:
            yield Described([], choices, True, "")


def _bash(root: click.Context) -> str:
    commands, choices, words = [], [], []
    for name, _, parameters in _commands(root):
        commands.append(name)
        flags = " ".join(flag for parameter in parameters for flag in parameter.names)
        words.append(f'          "{name} -"*) words="{flags}" ;;')
        for parameter in parameters:
            listed = " ".join(parameter.choices)
            if listed and parameter.names:
                patterns = " | ".join(f'"{name} {flag}"' for flag in parameter.names)
                choices.append(f'      {patterns}) words="{listed}" ;;')
            elif listed:
                words.append(f'          "{name} "*) words="{listed}" ;;')
    return BASH.format(commands=" ".join(commands), choices="\n".join(choices), words="\n".join(words))


def _fish(root: click.Context) -> str:
    lines = []
    for name, help_text, parameters in _commands(root):
        lines.append(f"complete -c dlc-reg -n __fish_use_subcommand -f -a {name} -d {_quoted(help_text)}")
        for parameter in parameters:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in parameter.names
            )
            words = f"-a {_quoted(' '.join(parameter.choices))}" if parameter.choices else ""
            value = ("-x" if words else "-r") if flags and parameter.takes_value else "-f" if words else ""
            parts = [flags, value, words, f"-d {_quoted(parameter.help)}" if parameter.help else ""]
            condition = f"-n '__fish_seen_subcommand_from {name}'"
            lines.append(" ".join(["complete -c dlc-reg", condition, *filter(None, parts)]))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
