package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// figure is one line of the benchmark's output.
type figure struct {
	// Row is the name of the row, as -h lists it.
	Row string `json:"row"`
	// What was measured, and How, for a person. How is that of the row.
	What string `json:"what"`
	How  string `json:"how"`
	// Value and Floor are medians, in Unit.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Floor float64 `json:"floor,omitempty"`
	// FloorIs is what the floor is: that of the row, unless the figure has another.
	FloorIs string `json:"floor_is,omitempty"`
	// Ratio is the median of the rounds' own ratios of value and floor.
	Ratio float64 `json:"ratio,omitempty"`
	// Goal is what the figure is to be; "x × floor" is about Ratio.
	Goal string `json:"goal,omitempty"`
	// Env is where it was measured.
	Env environment `json:"env"`
}

// environment is the machine, as far as a figure depends on it.
type environment struct {
	CPUs   int    `json:"cpus"`
	CPU    string `json:"cpu"`
	Load   string `json:"load"` // the kernel's load averages, 1, 5 and 15 min
	Go     string `json:"go"`
	Rounds int    `json:"rounds"`
}

func here(rounds int) environment {
	return environment{CPUs: runtime.NumCPU(), CPU: cpuName(), Load: loadAverage(), Go: runtime.Version(), Rounds: rounds}
}

func cpuName() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	fields := bytes.Fields(b)
	return string(bytes.Join(fields[:min(3, len(fields))], []byte(" ")))
}

// report prints figures as they come and remembers them for the table.
type report struct {
	w   io.Writer
	all []figure
}

func newReport(w io.Writer) *report { return &report{w: w} }

func (r *report) add(f figure) error {
	of := explained(f.Row)
	f.How = of.how
	if f.Floor > 0 && f.FloorIs == "" {
		f.FloorIs = of.floor
	}
	r.all = append(r.all, f)
	return json.NewEncoder(r.w).Encode(f)
}

// table prints all figures for a person, each row's below what explains it.
func (r *report) table() {
	w := tabwriter.NewWriter(r.w, 0, 0, 2, ' ', 0)
	for _, of := range rows() {
		title := false
		for _, f := range r.all {
			if f.Row != of.name {
				continue
			}
			if !title {
				title = true
				of.head(r.w)
				fmt.Fprintln(w, "  figure\tvalue\tfloor\tratio\tgoal")
			}
			what := f.What
			if f.FloorIs != of.floor && f.FloorIs != "" {
				what += " (floor: " + f.FloorIs + ")"
			}
			fmt.Fprintf(w, "  %s\t%s %s\t%s\t%s\t%s\n", what, number(f.Value), f.Unit, show(f.Floor), show(f.Ratio), f.Goal)
		}
		_ = w.Flush() // columns are those of one row
	}
}

// head prints what the figures of a row are.
func (r row) head(w io.Writer) {
	fmt.Fprintf(w, "\n%s: %s\n  how: %s\n", r.name, r.what, r.how)
	if r.floor != "" {
		fmt.Fprintf(w, "  floor: %s\n", r.floor)
	}
}

// show leaves out what wasn't measured.
func show(v float64) string {
	if v == 0 {
		return "-"
	}
	return number(v)
}

func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return fmt.Sprintf("%.5f", v)
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// series are the rounds of one figure and its floor.
type series struct{ value, floor []float64 }

func (s *series) add(value, floor float64) {
	s.value, s.floor = append(s.value, value), append(s.floor, floor)
}

// ratio returns the median of the rounds' ratios.
func (s series) ratio() float64 {
	var all []float64
	for i := range s.value {
		if s.floor[i] > 0 {
			all = append(all, s.value[i]/s.floor[i])
		}
	}
	return median(all)
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	all = slices.Sorted(slices.Values(all))
	mid := len(all) / 2
	if len(all)%2 == 1 {
		return all[mid]
	}
	return (all[mid-1] + all[mid]) / 2
}
