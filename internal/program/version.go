package program

import (
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// commit is the commit that the program was built of, "-dirty" behind it if there were
// changes: what `make build` and the images say by -ldflags -X. Without them Go knows it
// where it may read the checkout.
var commit string

// Build is what a program was made of.
type Build struct{ Version, Commit, Go string }

// BuildOf returns what this program was made of.
func BuildOf() Build {
	b := Build{Version: "unknown", Commit: commit, Go: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Version, b.Go = info.Main.Version, info.GoVersion
	if b.Commit == "" {
		b.Commit = revision(info.Settings)
	}
	return b
}

// revision is what Go has found out of the checkout; "unknown": it did not look.
func revision(settings []debug.BuildSetting) string {
	rev, dirty := "unknown", ""
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	return rev + dirty
}

// Version returns the version of the build, its commit, and the version of Go.
func Version() string {
	b := BuildOf()
	return b.Version + " commit " + b.Commit + " " + b.Go
}

// buildInfo is the metric that says what runs: always 1, for joins with others.
func buildInfo(name string) prometheus.Collector {
	b := BuildOf()
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "millrace_build_info", Help: "What the program was built of; the value is always 1.",
		ConstLabels: prometheus.Labels{"program": name, "version": b.Version, "commit": b.Commit, "go_version": b.Go},
	})
	g.Set(1)
	return g
}
