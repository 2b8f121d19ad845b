package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

const bashCompletion = `_rollcall() {
  local cur="${COMP_WORDS[COMP_CWORD]}" words
  words=("${COMP_WORDS[@]:0:COMP_CWORD}")
  [[ "$cur" == -* ]] && words+=("$cur")
  mapfile -t COMPREPLY < <(compgen -W "$("${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}
complete -o bashdefault -o default -F _rollcall rollcall
`

const zshCompletion = `#compdef rollcall
_rollcall() {
  local -a opts
  local cur=${words[-1]}
  if [[ "$cur" == -* ]]; then
    opts=("${(@f)$(${words[@]:0:#words[@]-1} ${cur} --generate-bash-completion 2>/dev/null)}")
  else
    opts=("${(@f)$(${words[@]:0:#words[@]-1} --generate-bash-completion 2>/dev/null)}")
  fi
  if [[ "${opts[1]}" != "" ]]; then _describe 'values' opts; else _files; fi
}
compdef _rollcall rollcall
`

func completionCommand() *cli.Command {
	print := func(name, text string) *cli.Command {
		return &cli.Command{Name: name, Usage: "completion script for " + name, Action: func(c *cli.Context) error {
			_, err := io.WriteString(c.App.Writer, text)
			return err
		}}
	}
	return &cli.Command{
		Name: "completion", Usage: "print a shell completion script",
		Description: "Example:\n\n   source <(rollcall completion bash)",
		Subcommands: []*cli.Command{
			print("bash", bashCompletion), print("zsh", zshCompletion),
			{Name: "fish", Usage: "completion script for fish", Action: func(c *cli.Context) error {
				text, err := c.App.ToFishCompletion()
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.App.Writer, text)
				return err
			}},
		},
	}
}
