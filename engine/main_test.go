package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"millrace.dev/millrace/engine/enginepb"
	"millrace.dev/millrace/internal/obs"
	"millrace.dev/millrace/internal/program"
)

// runtimeDir looks like a runtime to a check.
func runtimeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "xllamacpp"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"xllamacpp/__init__.py", "libggml-rpc.so"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func flags(t *testing.T, more ...string) []string {
	return append([]string{"-node", "node-a", "-shard", "127.0.0.1:1", "-backend", "127.0.0.1:2", "-runtime", runtimeDir(t), "-logs", t.TempDir()}, more...)
}

func TestBadFlags(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := []struct {
		name string
		args []string
		exit int
		want string
	}{
		{"unknown flag", []string{"-nope"}, program.ExitUsage, "flag provided but not defined"},
		{"bad names and addresses, all at once", []string{"-node", "Node A", "-http", "x"}, program.ExitUsage,
			`-node: "Node A"; must be a name of a-z, 0-9 and -`},
		{"address without a port", flags(t, "-http", "x"), program.ExitUsage, `-http: "x"; must be ip:port`},
		{"a port that is none", flags(t, "-check", "-metrics", "127.0.0.1:99999"), program.ExitUsage, `-metrics: "127.0.0.1:99999"; must be ip:port`},
		{"an argument", flags(t, "x"), program.ExitUsage, `argument "x"`},
		{"bad tracing target", flags(t, "-traces", "http://x"), program.ExitUsage, "must be otlp://host:port"},
		{"no runtime", flags(t, "-runtime", "/nowhere"), program.ExitSetup, "/nowhere/xllamacpp/__init__.py"},
		{"address in use", flags(t, "-http", taken.Addr().String()), program.ExitInUse, "address already in use"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			err := run(t.Context(), tt.args, &stderr)
			if err == nil {
				t.Fatal("no error")
			}
			obs.PrintError(&stderr, "engine", err)
			if program.ExitCode(err) != tt.exit || !strings.Contains(stderr.String(), tt.want) {
				t.Errorf("exit %d, %s; want %d, %s", program.ExitCode(err), &stderr, tt.exit, tt.want)
			}
		})
	}
}

func TestCheckAndVersionEnd(t *testing.T) {
	for _, args := range [][]string{flags(t, "-check"), {"-version"}} {
		if err := run(t.Context(), args, io.Discard); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	if err := run(t.Context(), []string{"-help"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Error(err)
	}
}

var address = regexp.MustCompile(` (http|grpc|metrics)=(\S+)`)

// release says to an engine that there is nothing for it.
func release(t *testing.T, address string) {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := enginepb.NewEngineClient(conn).Assign(t.Context(), &enginepb.Assignment{Generation: 1}); err != nil {
		t.Fatal(err)
	}
}

func TestServesUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	logs, stderr := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, flags(t), stderr)
		_ = stderr.Close()
	}()
	lines := bufio.NewScanner(logs)
	for lines.Scan() && !strings.Contains(lines.Text(), "msg=ready") {
	}
	line := lines.Text()
	go func() { _, _ = io.Copy(io.Discard, logs) }()
	addresses := map[string]string{}
	for _, m := range address.FindAllStringSubmatch(line, -1) {
		addresses[m[1]] = m[2]
	}
	if len(addresses) != 3 {
		t.Fatalf("%q, %v", line, lines.Err())
	}
	ready := fmt.Sprintf("http://%s/readyz", addresses["metrics"])
	want := map[string]string{
		fmt.Sprintf("http://%s/health", addresses["http"]): "no model is assigned",
		ready: "has not said yet what to serve",
		fmt.Sprintf("http://%s/metrics", addresses["metrics"]): `millrace_engine_state_info{state="IDLE"} 1`,
	}
	for url, text := range want {
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(body), text) {
			t.Errorf("%s: %s, want %s", url, body, text)
		}
		if url == ready && resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s: %s; an engine that nobody has given a word is not ready", url, resp.Status)
		}
	}
	release(t, addresses["grpc"])
	for deadline := time.Now().Add(10 * time.Second); ; {
		resp, err := http.Get(ready)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s %s; an engine that is to serve nothing is ready", ready, resp.Status, body)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
