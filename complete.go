package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"

	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
)

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

// completion writes a script by which a shell completes commands and flags.
func completion(ctx context.Context, args []string, std files) error {
	shell, err := newFlags("completion", std).ReadArgument(args, "bash|zsh|fish")
	if err != nil {
		return err
	}
	script, known := shells[shell]
	if !known {
		return program.Usage(&obs.Hint{Err: fmt.Errorf("completion: shell %q; must be bash, zsh or fish", shell),
			Next: "for example: source <(millrace completion bash)"})
	}
	var all []string
	var cases, lines strings.Builder
	lines.WriteString("complete -c millrace -f -n __fish_use_subcommand\n")
	for _, c := range commands() {
		all = append(all, c.name)
		flags := flagsOf(ctx, c)
		word := "words"
		if shell == "zsh" {
			word = "words_"
		}
		fmt.Fprintf(&cases, "      %s) %s=\"%s\";;\n", c.name, word, strings.Join(flags, " "))
		fmt.Fprintf(&lines, "complete -c millrace -n __fish_use_subcommand -a %s -d '%s'\n", c.name, strings.ReplaceAll(c.does, "'", `\'`))
		for _, f := range flags {
			fmt.Fprintf(&lines, "complete -c millrace -n '__fish_seen_subcommand_from %s' -o %s\n", c.name, strings.TrimPrefix(f, "-"))
		}
	}
	_, err = strings.NewReplacer("{{.All}}", strings.Join(all, " "), "{{.Cases}}", cases.String(), "{{.Lines}}", lines.String()).WriteString(std.out, script)
	return err
}

// flagLine is a flag in what a command's -h prints.
var flagLine = regexp.MustCompile(`(?m)^  (-[a-z-]+)`)

// flagsOf returns the flags of a command, as its help has them.
func flagsOf(ctx context.Context, c command) []string {
	var help strings.Builder
	if err := c.run(ctx, []string{"-h"}, files{in: strings.NewReader(""), out: &help, err: io.Discard}); !errors.Is(err, flag.ErrHelp) {
		return nil
	}
	var all []string
	for _, m := range flagLine.FindAllStringSubmatch(help.String(), -1) {
		all = append(all, m[1])
	}
	return all
}
