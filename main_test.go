package main

import (
	"bytes"
	"errors"
	"flag"
	"strings"
	"testing"

	"millrace.dev/millrace/internal/program"
)

func call(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, files{in: strings.NewReader(""), out: &out, err: &out})
	return out.String(), err
}

func TestBadCommandLines(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{name: "no command", want: "no command"},
		{name: "unknown command", args: []string{"start"}, want: `no command "start"`},
		{name: "unknown flag", args: []string{"up", "-colour", "red"}, want: "-colour"},
		{name: "argument", args: []string{"up", "now"}, want: `"now"`},
		{name: "bad capacity", args: []string{"up", "-capacity", "node-a"}, want: "NODE=TOKENS_PER_SECOND"},
		{name: "nowhere to install to", args: []string{"install-models"}, want: "-to is missing"},
		{name: "identity of nobody", args: []string{"identity", "-check", "-roles", "root"}, want: `-roles: role "root"; must be one of`},
		{name: "an authority in plain text", args: []string{"identity", "-roles", "envoy", "-authority", "http://xds:7102"}, want: `-authority: "http://xds:7102"; must be https://`},
		{name: "half an authority", args: []string{"identity", "-roles", "xds", "-ca-key", "k"}, want: "-ca-cert and -ca-key; must be given both"},
		{name: "two authorities", args: []string{"identity", "-roles", "xds", "-ca-cert", "c", "-ca-key", "k", "-authority", "https://xds:7102"}, want: "must be one of them"},
		{name: "bad address", args: []string{"up", "-check", "-listen", "x"}, want: `-listen "x"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := call(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) || program.ExitCode(err) != program.ExitUsage {
				t.Errorf("run(%q) = %v (exit %d), want %q (exit 2)", tt.args, err, program.ExitCode(err), tt.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	out, err := call(t, "help")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"up", "status", "chat", "check", "setup", "identity", "install-models"} {
		if !strings.Contains(out, "\n  "+command+" ") {
			t.Errorf("help has no %q", command)
		}
		if text, err := call(t, command, "-h"); !errors.Is(err, flag.ErrHelp) || !strings.Contains(text, "usage: millrace "+command) {
			t.Errorf("%s -h: %q, %v", command, text, err)
		}
	}
}

func TestUpCheckStartsNothing(t *testing.T) {
	if out, err := call(t, "up", "-check"); err != nil || out != "millrace: flags and configuration are in order\n" {
		t.Errorf("up -check: %q, %v", out, err)
	}
}
