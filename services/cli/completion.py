"""`meterpost completion`: what makes a shell complete commands and options when TAB is pressed."""

from typing import Annotated, Literal

import typer
from typer._completion_classes import completion_init
from typer._completion_shared import get_completion_script

from services.cli.show import write

VARIABLE = "_METERPOST_COMPLETE"
# Typer's own script takes the words as bash breaks them, at colons, too: after `--url http://…` it would be lost.
_BASH = f"""\
_meterpost_completion() {{
    local IFS=$'\\n'
    COMPREPLY=( $( env {VARIABLE}=complete_fish _TYPER_COMPLETE_FISH_ACTION=get-args \\
        _TYPER_COMPLETE_ARGS="${{COMP_LINE:0:COMP_POINT}}" "$1" 2>/dev/null | cut -f 1 ) )
}}
complete -o default -F _meterpost_completion meterpost
"""

completion_init()


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", show_default=False)],
) -> None:
    """Write the script that completes commands and options when TAB is pressed.

    bash: echo 'eval "$(meterpost completion bash)"' >> ~/.bashrc

    zsh, in a folder of $fpath: meterpost completion zsh > ~/.zfunc/_meterpost

    fish: meterpost completion fish > ~/.config/fish/completions/meterpost.fish
    """
    script = _BASH
    if shell != "bash":
        script = get_completion_script(prog_name="meterpost", complete_var=VARIABLE, shell=shell)
    write(script.strip() + "\n")
