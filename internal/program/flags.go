package program

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"millrace.dev/millrace/internal/obs"
)

// Flags are a program's flags: the package flag's, and addresses, whose rules are
// the same everywhere.
type Flags struct {
	*flag.FlagSet

	// Constant.
	help io.Writer // gets what -h asks for

	metrics        string
	check, version bool
	addresses      []address
}

// address is a flag that holds one.
type address struct {
	name   string
	value  *string
	listen bool // whether the program listens there; else somebody else does
}

// NewFlags returns the flags of a program or of a command. It prints nothing but the
// help that is asked for, to help: an error is printed once, by Main.
func NewFlags(name string, help io.Writer) *Flags {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return &Flags{FlagSet: fs, help: help}
}

// Listen adds the address of a port of the program's own.
func (f *Flags) Listen(p *string, name, value, usage string) {
	f.StringVar(p, name, value, usage)
	f.addresses = append(f.addresses, address{name, p, true})
}

// Dial adds the address of another program. -check does without.
func (f *Flags) Dial(p *string, name, value, usage string) {
	f.StringVar(p, name, value, usage)
	f.addresses = append(f.addresses, address{name, p, false})
}

// Given reports whether the command line has the flag.
func (f *Flags) Given(name string) (given bool) {
	f.Visit(func(g *flag.Flag) { given = given || g.Name == name })
	return given
}

// Read reads the command line, which must have nothing but flags.
func (f *Flags) Read(args []string) error {
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(f.help, "usage: %s [flags]\n", f.Name())
		f.SetOutput(f.help)
		f.PrintDefaults()
		return err
	case err != nil:
		return f.usage(err)
	case f.NArg() > 0:
		return f.usage(fmt.Errorf("argument %q; must be only flags", f.Arg(0)))
	}
	return nil
}

// validate returns all that is wrong with the values, in one line. more finds what
// is the program's own.
func (f *Flags) validate(more func() error) error {
	var errs []error
	for _, a := range f.addresses {
		if !a.listen && f.check && *a.value == "" {
			continue
		}
		if !isAddress(*a.value) {
			errs = append(errs, fmt.Errorf("-%s: %q; must be ip:port", a.name, *a.value))
		}
	}
	if more != nil {
		errs = append(errs, more())
	}
	if texts := lines(errs); len(texts) > 0 {
		return f.usage(errors.New(strings.Join(texts, "; ")))
	}
	return nil
}

func (f *Flags) usage(err error) error {
	return Usage(&obs.Hint{Err: err, Next: "run " + f.Name() + " -h for all flags"})
}

func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// lines returns the texts of errors, joined ones apart.
func lines(errs []error) (texts []string) {
	for _, err := range errs {
		if err != nil {
			texts = append(texts, strings.Split(err.Error(), "\n")...)
		}
	}
	return texts
}
