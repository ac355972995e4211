package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// tokens measures P8 by the token package's own benchmark, which nothing but Go
// is needed for.
func tokens(ctx context.Context, b *bench) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkCount", "-cpu", "1",
		"-count", strconv.Itoa(b.rounds), "-benchtime", b.each.String(), "millrace.dev/millrace/extproc/internal/token")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w\n%s%s", err, out, stderr.Bytes())
	}
	speeds := map[string]*series{}
	var names []string
	for _, m := range benchLine.FindAllSubmatch(out, -1) {
		name := string(m[1])
		if speeds[name] == nil {
			speeds[name] = &series{}
			names = append(names, name)
		}
		v, err := strconv.ParseFloat(string(m[2]), 64)
		if err != nil {
			return err
		}
		speeds[name].add(v, 0)
	}
	for _, name := range names {
		goal := "≥ 60"
		if strings.Contains(name, "chinese") {
			goal = "≥ 25"
		}
		err := b.out.add(figure{Row: "P8", What: "tokens counted, " + name, Unit: "MB/CPU-s", Value: median(speeds[name].value), Goal: goal, Env: here(b.rounds)})
		if err != nil {
			return err
		}
	}
	return nil
}

// benchLine is a line of a benchmark that has a speed by CPU time.
var benchLine = regexp.MustCompile(`(?m)^Benchmark(\S+)\s.*\s([0-9.]+) MB/cpu-s`)
