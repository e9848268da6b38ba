"""`dlc-reg completion`: the scripts as the shells themselves read them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest
from commanding import run

from dlc_reg.cli import main

SHELLS = {
    "bash": """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _dlc_reg; echo "${COMPREPLY[@]}"
    """,
    # as bashcompinit calls it: in the manner of sh, after its own compgen has been loaded
    "zsh": """
        autoload -Uz compinit && compinit -u -D; source "$1"; shift
        as_in_sh() {
          emulate -L sh; COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _dlc_reg; echo "${COMPREPLY[@]}"
        }
        as_in_sh "$@"
    """,
    "fish": 'source $argv[1]; complete -C "$argv[2..]" | string split -f 1 \\t; true',  # split fails without a tab
}


def completed(shell: str, tmp_path: Path, *words: str) -> set[str]:
    """What the shell offers for the last of the words."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(run("completion", shell).stdout)
    command = [shell, *({"zsh": ["-f"], "fish": ["--no-config"]}.get(shell, [])), "-c", SHELLS[shell]]
    command += ["name"] * (shell != "fish") + [str(script), "dlc-reg", *words]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert answer.returncode == 0 and answer.stderr == "", answer.stderr
    return {word for word in answer.stdout.split() if word.startswith(words[-1])}  # zsh leaves this to its own matching


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_choices_complete(shell, tmp_path):
    assert completed(shell, tmp_path, "") >= set(main.commands)
    assert completed(shell, tmp_path, "register-m") == {"register-many", "register-multiway"}
    assert completed(shell, tmp_path, "register", "--so") == {"--source-viewpoint", "--source-gravity"}
    assert completed(shell, tmp_path, "register", "a.ply", "b.ply", "--method", "point") == {
        "point-to-point",
        "point-to-plane",
    }
    assert completed(shell, tmp_path, "completion", "") >= set(SHELLS)
    assert completed(shell, tmp_path, "info", "--me") == set()


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_of_every_command_completes(name, tmp_path):
    options = {flag for parameter in main.commands[name].params if isinstance(parameter, click.Option)
               for flag in (*parameter.opts, *parameter.secondary_opts)}  # fmt: skip
    assert completed("bash", tmp_path, name, "-") == options | {"-h", "--help"}


def test_a_shell_that_is_not_known_is_refused():
    result = run("completion", "tcsh")
    assert result.exit_code == 64 and "bash" in result.stderr
