package program

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"millrace.dev/millrace/internal/mtls"
	"millrace.dev/millrace/internal/nearest"
	"millrace.dev/millrace/internal/obs"
)

// Flags are a program's flags: the package flag's, and addresses, whose rules are
// the same everywhere.
type Flags struct {
	*flag.FlagSet

	// Constant.
	help io.Writer // gets what -h asks for

	// Guarded is whether the program protects its own ports, other than the admin
	// page, without an identity of the mesh. Validate may set it.
	Guarded bool

	metrics, probes          string
	check, version, insecure bool
	tls                      mtls.Files
	id                       mtls.ID
	addresses                []address
}

// address is a flag that holds one.
type address struct {
	name  string
	value *string
	use   use
}

// use is what an address is for.
type use int

const (
	dial      use = iota // of another program, which has TLS when this one has
	listen               // of a port that has TLS when the program has an identity
	listenIf             // of such a port, or empty
	cleartext            // of a port that never has it
	admin                // of the admin page
	probes               // of the pages that hold no secret, or empty
	openPort             // of a port that protects itself, or empty
)

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
	f.addresses = append(f.addresses, address{name, p, listen})
}

// ListenIf is Listen for a port that is there only if it is given.
func (f *Flags) ListenIf(p *string, name, usage string) {
	f.StringVar(p, name, "", usage)
	f.addresses = append(f.addresses, address{name, p, listenIf})
}

// Dial adds the address of another program. -check does without.
func (f *Flags) Dial(p *string, name, value, usage string) {
	f.StringVar(p, name, value, usage)
	f.addresses = append(f.addresses, address{name, p, dial})
}

// Cleartext adds the address of a port of the program's own, or of a process of its, that
// speaks plain text in any case.
func (f *Flags) Cleartext(p *string, name, value, usage string) {
	f.StringVar(p, name, value, usage)
	f.addresses = append(f.addresses, address{name, p, cleartext})
}

// Optional adds the address of a port that is there only if it is given, and that
// protects itself or has nothing to protect. Its listener comes from Env.Open.
func (f *Flags) Optional(p *string, name, usage string) {
	f.StringVar(p, name, "", usage)
	f.addresses = append(f.addresses, address{name, p, openPort})
}

// Given reports whether the command line has the flag.
func (f *Flags) Given(name string) (given bool) {
	f.Visit(func(g *flag.Flag) { given = given || g.Name == name })
	return given
}

// Read reads the command line, which must have nothing but flags.
func (f *Flags) Read(args []string) error {
	_, err := f.ReadArgument(args, "")
	return err
}

// ReadArgument reads a command line that may have one argument, before, between or behind
// the flags, and returns it; empty: it has none. what names it in the usage; empty: there
// must be none.
func (f *Flags) ReadArgument(args []string, what string) (argument string, err error) {
	for {
		err := f.Parse(args)
		switch {
		case errors.Is(err, flag.ErrHelp):
			usage := "[flags]"
			if what != "" {
				usage += " " + what
			}
			fmt.Fprintf(f.help, "usage: %s %s\n", f.Name(), usage)
			f.SetOutput(f.help)
			f.PrintDefaults()
			return "", err
		case err != nil:
			return "", f.usage(f.didYouMean(err))
		case f.NArg() == 0:
			return argument, nil
		case what == "":
			return "", f.usage(fmt.Errorf("unexpected argument %q; there are only flags", f.Arg(0)))
		case argument != "" || f.Arg(0) == "":
			return "", f.usage(fmt.Errorf("unexpected argument %q; there is one %s, and flags", f.Arg(0), what))
		}
		argument, args = f.Arg(0), f.Args()[1:]
	}
}

// unknownFlag is how the package flag begins to say that there is no such flag.
const unknownFlag = "flag provided but not defined: -"

// noValue is how the package flag says that a value is none of its flag's kind.
const noValue = ": parse error"

// mustBe says of which kind a flag's value is.
func mustBe(g *flag.Flag) string {
	v, ok := g.Value.(flag.Getter)
	if !ok {
		return "another value"
	}
	switch v.Get().(type) {
	case time.Duration:
		return "a duration such as 250ms, 30s or 1h"
	case bool:
		return "true or false"
	case float64:
		return "a number"
	default:
		return "a whole number"
	}
}

// didYouMean adds to the error of an unknown flag the one that was meant, if there is one, and to
// that of a value what it must be.
func (f *Flags) didYouMean(err error) error {
	if fault, ok := strings.CutSuffix(err.Error(), noValue); ok {
		f.VisitAll(func(g *flag.Flag) {
			if strings.HasSuffix(fault, " -"+g.Name) {
				err = fmt.Errorf("%s; must be %s", fault, mustBe(g))
			}
		})
		return err
	}
	name, unknown := strings.CutPrefix(err.Error(), unknownFlag)
	if !unknown {
		return err
	}
	var names []string
	f.VisitAll(func(g *flag.Flag) { names = append(names, g.Name) })
	if near := nearest.Of(name, names); near != "" {
		return fmt.Errorf("%w; did you mean -%s?", err, near)
	}
	return err
}

// validate returns all that is wrong with the values, in one line. more finds what
// is the program's own.
func (f *Flags) validate(more func() error) error {
	var own error
	if more != nil {
		own = more()
	}
	var errs []error
	open := false
	for _, a := range f.addresses {
		switch {
		case (a.use >= probes || a.use == listenIf) && *a.value == "", a.use == dial && f.check && *a.value == "":
		case !isAddress(*a.value):
			errs = append(errs, fmt.Errorf("-%s: %q; must be ip:port", a.name, *a.value))
		case f.open(a.use, *a.value):
			open = true
			errs = append(errs, fmt.Errorf("-%s: %s is not on loopback, and would be reached in plain text", a.name, *a.value))
		}
	}
	texts := lines(append(errs, f.checkTLS(), own))
	switch {
	case len(texts) == 0:
		return nil
	case open:
		return Usage(&obs.Hint{Err: errors.New(strings.Join(texts, "; ")), Next: openHint})
	}
	return f.usage(errors.New(strings.Join(texts, "; ")))
}

// openHint is the way out where plain text would leave the machine.
const openHint = "give the program an identity with -tls-cert, -tls-key and -tls-ca, or, on a network that you trust, -insecure"

// open reports whether an address would be reached in plain text from elsewhere.
func (f *Flags) open(u use, address string) bool {
	if f.insecure || u >= probes || IsLoopback(address) {
		return false
	}
	return u == cleartext || f.tls.CA == "" && !(u == listen && f.Guarded)
}

// checkTLS returns which of the flags of TLS lack each other.
func (f *Flags) checkTLS() error {
	switch {
	case (f.tls.Cert == "") != (f.tls.Key == ""):
		return errors.New("-tls-cert and -tls-key; must be given both, or neither")
	case f.tls.CA != "" && f.tls.Cert == "":
		return errors.New("-tls-ca; needs -tls-cert and -tls-key, too")
	case f.tls.CA == "" && f.tls.Cert != "" && !f.Guarded:
		return errors.New("-tls-cert; needs -tls-ca, the authorities of the mesh, too")
	}
	return nil
}

// TLS returns the files of the program's identity; no CA: it has none.
func (f *Flags) TLS() mtls.Files { return f.tls }

// ID returns the program's identity, once it is read: in Load and later.
func (f *Flags) ID() mtls.ID { return f.id }

// IsLoopback reports whether an address is surely this machine's own.
func IsLoopback(address string) bool {
	host, _, _ := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
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
