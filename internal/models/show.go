package models

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Show writes a list as a table.
func Show(w io.Writer, all []Entry, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tSIZE\tHASH\tLOADED\tUSED\tCALLED")
	for _, e := range all {
		called := e.Ref
		if called == e.Name {
			called = ""
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.Name, e.State, size(e.Size), dash(e.SHA256[:min(12, len(e.SHA256))]), dash(e.places()), e.used(now), dash(called))
	}
	return t.Flush()
}

// JSON writes a list as JSON.
func JSON(w io.Writer, all []Entry) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(all)
}

// places says which nodes serve the model, and whether it is loaded there.
func (e Entry) places() string {
	var all []string
	for _, p := range e.Places {
		text := p.Node
		switch {
		case p.State == "failed" && p.Why != "":
			text += " failed: " + p.Why
		case p.State != placeLoaded && p.State != "":
			text += " " + p.State
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func size(n int64) string {
	switch {
	case n <= 0:
		return "-"
	case n < 1e6:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	case n < 1e9:
		return fmt.Sprintf("%.0f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// used says when a mesh last began with a model.
func (e Entry) used(now time.Time) string {
	ago := now.Sub(e.Used)
	switch {
	case len(e.Loaded) > 0:
		return "now"
	case e.Used.IsZero():
		return "-"
	case ago < time.Hour:
		return fmt.Sprintf("%d min ago", int(ago.Minutes()))
	case ago < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(ago.Hours()))
	}
	return e.Used.Format(time.DateOnly)
}
