// Package chat is `millrace chat`: a conversation with a mesh in the terminal,
// which shows with each answer who gave it and what it cost.
//
// Called by the millrace command. Its one rule: it uses nothing but the OpenAI
// API and the response headers that every client gets.
package chat

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"millrace.dev/millrace/internal/keys"
	"millrace.dev/millrace/internal/obs"
)

// maxLine bounds one line of the user, in bytes.
const maxLine = 1 << 20

// Options is where a chat takes place.
type Options struct {
	// URL of the server, for example http://127.0.0.1:10000.
	URL string
	// Key is the API key; empty: none is sent.
	Key string
	// Model is the model's id; empty: the first that the server lists.
	Model string
	// In gives the user's lines, one turn each.
	In io.Reader
	// Out gets the answers, Err everything else.
	Out, Err io.Writer
	// Interactive is whether a person types: then there is a prompt, and an error
	// does not end the chat.
	Interactive bool
	// System says who the model is to be; empty: nothing does.
	System string
	// MaxTokens bounds an answer; 0: maxAnswer. Temperature is how freely words are chosen;
	// nil: the model's own.
	MaxTokens   int
	Temperature *float64
	// Wait is how long the first question is asked again while nobody answers it: a mesh
	// that was just installed has to load its model.
	Wait time.Duration

	transport http.RoundTripper // a test's; nil: the network
}

// conversation is a chat under way.
type conversation struct {
	Options
	client  *client
	session string // a new one after /reset: nothing of the old one counts
	turns   []message
}

// Run talks until In ends, /quit, or ctx ends. Without a person it returns the
// first error.
func Run(ctx context.Context, o Options) error {
	transport := o.transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	c := &conversation{Options: o, client: &client{url: strings.TrimSuffix(o.URL, "/"), http: http.Client{Transport: keys.Transport(o.Key, transport)}, temperature: o.Temperature}}
	c.reset()
	if err := c.choose(ctx, time.Now().Add(o.Wait)); err != nil {
		return unreachable(o.URL, err)
	}
	if o.Interactive {
		fmt.Fprintf(o.Err, "%s at %s. /help says what there is, /quit ends.\n", c.Model, o.URL)
	}
	err := c.turnsFrom(ctx, lines(ctx, o.In))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// again is the time between two attempts to be answered.
const again = time.Second

// choose finds out the model, and tries it until deadline: it answers one token.
func (c *conversation) choose(ctx context.Context, deadline time.Time) error {
	for {
		err := c.reach(ctx)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(again):
		}
	}
}

// reach finds out the model if none is named; where it may have to be waited for, it is
// asked for a word.
func (c *conversation) reach(ctx context.Context) (err error) {
	model := c.Model
	if model == "" {
		if model, err = c.client.firstModel(ctx); err != nil {
			return err
		}
	}
	if c.Wait > 0 {
		_, err = c.client.ask(ctx, model, c.session, []message{{Role: "user", Content: "Hello"}}, 1, io.Discard)
	}
	if err == nil {
		c.Model = model
	}
	return err
}

func unreachable(url string, err error) error {
	return &obs.Hint{
		Err:  fmt.Errorf("chat: %w", err),
		Next: "start a mesh with `millrace up`, or name the address of one with -url; `millrace status` lists what runs. Asked was " + url,
	}
}

// line is one line of the user, or the error that ended them.
type line struct {
	text string
	err  error
}

// lines reads in the background, because a read from a terminal can't be
// interrupted: when ctx ends, the reader stays behind until the process ends.
func lines(ctx context.Context, r io.Reader) <-chan line {
	out := make(chan line)
	send := func(l line) bool {
		select {
		case out <- l:
			return true
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		defer close(out)
		scan := bufio.NewScanner(r)
		scan.Buffer(make([]byte, 0, 4096), maxLine)
		for scan.Scan() {
			if !send(line{text: scan.Text()}) {
				return
			}
		}
		if err := scan.Err(); err != nil {
			send(line{err: err})
		}
	}()
	return out
}

func (c *conversation) turnsFrom(ctx context.Context, in <-chan line) error {
	for {
		c.prompt()
		select {
		case <-ctx.Done():
			return nil
		case l, ok := <-in:
			if !ok || l.err != nil {
				return l.err
			}
			if quit, err := c.line(ctx, strings.TrimSpace(c.pasted(l.text, in))); quit || err != nil {
				return err
			}
		}
	}
}

// pasteGap is how soon after a line another one comes that was pasted with it: nobody types
// so fast.
const pasteGap = 40 * time.Millisecond

// pasted returns a line with those that were pasted with it, which are one question.
func (c *conversation) pasted(text string, in <-chan line) string {
	for c.Interactive && !strings.HasPrefix(text, "/") {
		select {
		case l, ok := <-in:
			if !ok || l.err != nil {
				return text // what ends the input is found when it is read again
			}
			text += "\n" + l.text
		case <-time.After(pasteGap):
			return text
		}
	}
	return text
}

func (c *conversation) prompt() {
	if c.Interactive {
		fmt.Fprint(c.Err, "> ")
	}
}

// line obeys a command or takes a turn.
func (c *conversation) line(ctx context.Context, text string) (quit bool, err error) {
	switch text {
	case "":
		return false, nil
	case "/quit", "/exit":
		return true, nil
	case "/help", "/?":
		fmt.Fprint(c.Err, help)
		return false, nil
	case "/reset":
		c.reset()
		fmt.Fprintln(c.Err, "[new conversation]")
		return false, nil
	}
	if c.Interactive && strings.HasPrefix(text, "/") && !strings.ContainsAny(text, " \n") {
		fmt.Fprintf(c.Err, "[no command %s; /help lists them]\n", text)
		return false, nil
	}
	err = c.turn(ctx, text)
	if err != nil && c.Interactive && ctx.Err() == nil {
		fmt.Fprintf(c.Err, "[%v]\n", err)
		return false, nil
	}
	return false, err
}

// help is what /help shows.
const help = `/reset  start a new conversation
/quit   end; so does Ctrl-D
Lines that are pasted together are one question. Ctrl-C ends the chat.
`

func (c *conversation) reset() {
	c.turns, c.session = nil, rand.Text()
	if c.System != "" {
		c.turns = []message{{Role: "system", Content: c.System}}
	}
}

// turn asks once. A turn without an answer leaves nothing in the conversation.
func (c *conversation) turn(ctx context.Context, text string) error {
	turns := append(c.turns, message{Role: "user", Content: text})
	a, err := c.client.ask(ctx, c.Model, c.session, turns, cmp.Or(c.MaxTokens, maxAnswer), c.Out)
	if a.text != "" {
		fmt.Fprintln(c.Out)
	}
	if err != nil {
		return turnError(c.URL, err)
	}
	c.turns = append(turns, message{Role: "assistant", Content: a.text})
	fmt.Fprintln(c.Err, a.summary())
	return nil
}

// turnError names the way out of what can be foreseen.
func turnError(url string, err error) error {
	var api *apiError
	switch {
	case errors.As(err, &api) && api.Code == "context_length_exceeded":
		return &obs.Hint{Err: fmt.Errorf("chat: %w", err), Next: "the conversation is longer than the model's context: start anew with /reset"}
	case errors.As(err, &api), errors.Is(err, errCut):
		return fmt.Errorf("chat: %w", err)
	default:
		return unreachable(url, err)
	}
}
