// Package complete is `millrace completion`: scripts by which shells complete commands
// and flags.
//
// Called by the millrace command. Its one rule: what there is comes from the commands
// themselves, so that a script never names what is gone.
package complete

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Command is a word after millrace, with its flags, "-dir", and the words that may follow it.
type Command struct {
	Name, Does   string
	Flags, Words []string
}

// shells are those that completion writes a script for, by name.
var shells = map[string]string{
	"bash": `_millrace() {
  local cur=${COMP_WORDS[COMP_CWORD]} words
  if [ "$COMP_CWORD" -eq 1 ]; then words="{{.All}}"; else
    case ${COMP_WORDS[1]} in
{{.Cases}}    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "$cur"))
}
complete -o filenames -F _millrace millrace
`,
	"zsh": `#compdef millrace
_millrace() {
  local words_
  if [ "$CURRENT" -eq 2 ]; then words_="{{.All}}"; else
    case ${words[2]} in
{{.Cases}}    esac
  fi
  compadd -- ${=words_}
  _files
}
compdef _millrace millrace
`,
	"fish": "{{.Lines}}",
}

// Shells are the names of those that there is a script for.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Write writes the script of a shell, one of Shells.
func Write(w io.Writer, shell string, commands []Command) error {
	var all []string
	var cases, lines strings.Builder
	lines.WriteString("complete -c millrace -f -n __fish_use_subcommand\n")
	words := "words"
	if shell == "zsh" {
		words = "words_" // words is the shell's own
	}
	for _, c := range commands {
		all = append(all, c.Name)
		fmt.Fprintf(&cases, "      %s) %s=\"%s\";;\n", c.Name, words, strings.Join(slices.Concat(c.Words, c.Flags), " "))
		fmt.Fprintf(&lines, "complete -c millrace -n __fish_use_subcommand -a %s -d '%s'\n", c.Name, strings.ReplaceAll(c.Does, "'", `\'`))
		for _, w := range c.Words {
			fmt.Fprintf(&lines, "complete -c millrace -n '__fish_seen_subcommand_from %s' -a %s\n", c.Name, w)
		}
		for _, f := range c.Flags {
			fmt.Fprintf(&lines, "complete -c millrace -n '__fish_seen_subcommand_from %s' -o %s\n", c.Name, strings.TrimPrefix(f, "-"))
		}
	}
	_, err := strings.NewReplacer("{{.All}}", strings.Join(all, " "), "{{.Cases}}", cases.String(), "{{.Lines}}", lines.String()).WriteString(w, shells[shell])
	return err
}
