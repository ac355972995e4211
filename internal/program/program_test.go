package program

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"millrace.dev/millrace/internal/obs"
)

// try returns a program that serves its admin page and one port.
func try(load error) Program {
	var listen, peer, word string
	return Program{
		Name: "try", Metrics: "127.0.0.1:0",
		Flags: func(f *Flags) {
			f.Listen(&listen, "listen", "127.0.0.1:0", "`ip:port` of it")
			f.Dial(&peer, "peer", "", "`ip:port` of another program")
			f.StringVar(&word, "word", "good", "a word")
		},
		Validate: func() error {
			if word != "good" {
				return errors.Join(errors.New("-word: bad"), errors.New("-word: bad again"))
			}
			return nil
		},
		Load: func() error { return load },
		Serve: func(ctx context.Context, env *Env) error {
			ln, err := env.Listen("listen", listen)
			if err != nil {
				return err
			}
			defer ln.Close()
			env.Log.Info("ready", "metrics", env.AdminAddress())
			return env.Admin(ctx, func() []obs.Condition { return []obs.Condition{{Code: "tried", Text: "of a file"}} })
		},
	}
}

// TestCheckFindsAddresses shows one that is in use, and one of another machine, where a start fails.
func TestCheckFindsAddresses(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	var out bytes.Buffer
	err = try(nil).Run(t.Context(), []string{"-check", "-listen", busy.Addr().String()}, &out)
	if text := out.String(); err != nil || !strings.Contains(text, "is in use now") || !strings.Contains(text, "in order") {
		t.Errorf("of a port in use: %v, %q", err, text)
	}
	out.Reset()
	elsewhere := []string{"-insecure", "-listen", "203.0.113.1:1"}
	err = try(nil).Run(t.Context(), append([]string{"-check"}, elsewhere...), &out)
	if text := out.String(); err != nil || !strings.Contains(text, "-listen: 203.0.113.1:1: this machine doesn't have") || !strings.Contains(text, "in order") {
		t.Errorf("of another machine's address: %v, %q", err, text)
	}
	if err := try(nil).Run(t.Context(), elsewhere, &out); err == nil {
		t.Error("it was started with another machine's address")
	}
	wrong := try(nil)
	wrong.Usable = func() error { return errors.New("-word: names nothing") }
	if err := wrong.Run(t.Context(), []string{"-check"}, &out); err == nil || !strings.Contains(err.Error(), "names nothing") {
		t.Errorf("of what is not there: %v", err)
	}
}

func TestFaultsHaveTheirExitCode(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	tests := []struct {
		name string
		args []string
		load error
		want string
		code int
	}{
		{name: "unknown flag", args: []string{"-nope"}, want: "flag provided but not defined: -nope", code: ExitUsage},
		{name: "a mistyped flag", args: []string{"--lisen", "x"}, want: "^flag provided but not defined: -lisen; did you mean -listen\\?$", code: ExitUsage},
		{name: "an argument", args: []string{"word"}, want: `unexpected argument "word"; there are only flags`, code: ExitUsage},
		{
			name: "all wrong values at once, in one line", args: []string{"-metrics", "x", "-listen", "127.0.0.1:99999", "-word", "worse"},
			want: `^-metrics: "x"; must be ip:port; -listen: "127.0.0.1:99999"; must be ip:port; -peer: ""; must be ip:port; -word: bad; -word: bad again$`, code: ExitUsage,
		},
		{
			name: "cleartext off loopback", args: []string{"-peer", "xds:7100", "-listen", "0.0.0.0:0", "-metrics", "[::]:0", "-probes", "0.0.0.0:0"},
			want: `^-metrics: \[::\]:0 is not on loopback, and would be reached in plain text; -listen: 0.0.0.0:0 .*; -peer: xds:7100 `, code: ExitUsage,
		},
		{name: "a bad port of probes", args: []string{"-check", "-probes", "7103"}, want: `-probes: "7103"; must be ip:port`, code: ExitUsage},
		{name: "a certificate without its key", args: []string{"-check", "-tls-cert", "c"}, want: "-tls-cert and -tls-key; must be given both", code: ExitUsage},
		{name: "authorities without a certificate", args: []string{"-check", "-tls-ca", "c"}, want: "-tls-ca; needs -tls-cert", code: ExitUsage},
		{name: "a certificate without authorities", args: []string{"-check", "-tls-cert", "c", "-tls-key", "c"}, want: "-tls-cert; needs -tls-ca", code: ExitUsage},
		{name: "no such certificate", args: []string{"-check", "-tls-cert", "/nowhere", "-tls-key", "/nowhere", "-tls-ca", "/nowhere"}, want: "-tls-cert /nowhere", code: ExitUsage},
		{name: "bad file", args: []string{"-peer", "127.0.0.1:7100"}, load: Config(errors.New("file: bad")), want: "file: bad", code: ExitConfig},
		{name: "missing part, found by -check too", args: []string{"-check"}, load: Setup(errors.New("no part")), want: "no part", code: ExitSetup},
		{name: "port in use", args: []string{"-peer", "127.0.0.1:7100", "-listen", busy.Addr().String()}, want: "listen: .*address already in use", code: ExitInUse},
		{name: "admin port in use", args: []string{"-peer", "127.0.0.1:7100", "-metrics", busy.Addr().String()}, want: "metrics: ", code: ExitInUse},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := try(tt.load)
			var out bytes.Buffer
			err := p.Run(t.Context(), tt.args, &out)
			if err == nil || !regexp.MustCompile(tt.want).MatchString(err.Error()) || ExitCode(err) != tt.code {
				t.Errorf("Run() = %v, exit code %d; want %s, %d", err, ExitCode(err), tt.want, tt.code)
			}
			if out.Len() > 0 {
				t.Errorf("printed %q; Main prints the error", out.String())
			}
		})
	}
}

func TestVersionCheckAndHelpStartNothing(t *testing.T) {
	for flag, want := range map[string]string{"-version": "try ", "-check": "try: flags and configuration are in order\n"} {
		var out bytes.Buffer
		p := try(nil)
		if err := p.Run(t.Context(), []string{flag}, &out); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("%s: %v, printed %q", flag, err, out.String())
		}
	}
	var out bytes.Buffer
	p := try(nil)
	if err := p.Run(t.Context(), []string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
	for _, want := range []string{"usage: try [flags]", "-word", "-metrics ip:port", "-check"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, out.String())
		}
	}
}

func TestServesItsAdminPageUntilTheEnd(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		p := try(nil)
		done <- p.Run(ctx, []string{"-peer", "127.0.0.1:7100", "-probes", "127.0.0.1:" + port}, w)
		w.Close()
	}()
	ready := regexp.MustCompile(`program=try metrics=(\S+)`)
	lines := bufio.NewScanner(r)
	for lines.Scan() && !ready.MatchString(lines.Text()) {
	}
	m := ready.FindStringSubmatch(lines.Text())
	if m == nil {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	for _, tt := range []struct{ host, path, want string }{
		{m[1], "/readyz", `{"code":"tried","text":"of a file","severity":"degraded"}`},
		{m[1], "/metrics", "process_cpu_seconds_total"},
		{m[1], "/debug/pprof/", "goroutine"},
		{"127.0.0.1:" + port, "/readyz", `[{"code":"tried","severity":"degraded"}]`},
		{"127.0.0.1:" + port, "/metrics", "process_cpu_seconds_total"},
		{"127.0.0.1:" + port, "/debug/pprof/", "404"},
	} {
		resp, err := http.Get("http://" + tt.host + tt.path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(body), tt.want) {
			t.Errorf("%s%s lacks %s", tt.host, tt.path, tt.want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v after its context ended", err)
	}
}

// TestEndsInItsGraceTime holds that a part which never ends does not keep a program from it.
func TestEndsInItsGraceTime(t *testing.T) {
	const grace = 5 * time.Second
	tests := []struct {
		name  string
		takes time.Duration // to end
		want  time.Duration
		stuck bool
	}{
		{"at once", 0, 0, false},
		{"in its grace time", grace, grace, false},
		{"never", time.Hour, grace + endMargin, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				ctx, cancel := context.WithCancel(t.Context())
				p := Program{Grace: func() time.Duration { return grace }}
				time.AfterFunc(time.Second, cancel)
				began := time.Now()
				err := p.within(ctx, func() error {
					<-ctx.Done()
					time.Sleep(tt.takes)
					return nil
				}, obs.Logger(&log, "try"))
				if took := time.Since(began) - time.Second; took != tt.want || (err != nil) != tt.stuck {
					t.Errorf("ended after %v with %v, want %v", took, err, tt.want)
				}
				if strings.Contains(log.String(), "TestEndsInItsGraceTime") != tt.stuck {
					t.Errorf("log: %s", log.String())
				}
				time.Sleep(time.Hour) // of what is left
			})
		})
	}
}
