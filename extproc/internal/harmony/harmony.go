// Package harmony renders conversations with gpt-oss in the form that it was trained with
// (openai/harmony, docs/format.md), as vLLM does for it without a chat template: a system
// message with the day and the effort, one of the developer's with instructions and the types
// of tools, and each turn as messages on channels.
//
// token calls it for engines of which that is known. Its one rule: text of clients is never a
// control token, and each piece of it is made into tokens by itself.
package harmony

import (
	"errors"
	"strings"

	"millrace.dev/millrace/extproc/internal/jinja"
)

// Tokens that give messages their form.
const (
	Start   = "<|start|>"
	Channel = "<|channel|>"
	Body    = "<|message|>"
	End     = "<|end|>"
	Called  = "<|call|>"
)

// Controls are all of them.
var Controls = [...]string{Start, Channel, Body, End, Called}

// Piece is a part of a prompt: a control token, or a text that is none, whatever is in it.
type Piece struct {
	Text    string
	Control bool
}

// Conversation is what is rendered.
type Conversation struct {
	// Effort is that of reasoning: low, medium or high; empty: medium.
	Effort string
	// Day is the day as 2006-01-02.
	Day   string
	Tools []Tool
	Turns []Turn
}

// Tool is a function that may be called.
type Tool struct {
	Name, Description string
	// Parameters are its JSON schema; nil: it has none.
	Parameters any
}

// Turn is a message of the request.
type Turn struct {
	Role string
	// Texts are the content's: one, or those of a list; nil: it has none.
	Texts []string
	// Thoughts are an assistant's reasoning, Calls what it calls.
	Thoughts string
	Calls    []Call
	// CallID is of which call a tool's message is the result.
	CallID string
}

// Call is one of a tool.
type Call struct{ ID, Name, Arguments string }

// ErrRefused is returned for a conversation that engines refuse.
var ErrRefused = errors.New("harmony: no such role, or effort")

// message is one in Harmony's form.
type message struct {
	author, channel string
	calls           string // the function that an assistant's message calls
	tool            bool   // whether it is the result of one
	texts           []string
}

// Render returns the prompt, which ends where the assistant begins.
func (c *Conversation) Render() ([]Piece, error) {
	switch c.Effort {
	case "", "low", "medium", "high":
	default:
		return nil, ErrRefused
	}
	messages, err := c.messages()
	if err != nil {
		return nil, err
	}
	p := pieces{}
	for _, m := range withoutThoughts(messages) {
		p.message(&m)
	}
	p.control(Start)
	p.text("assistant")
	return p, nil
}

// messages are those of the request behind the two that come first in each prompt.
func (c *Conversation) messages() ([]message, error) {
	turns, instructions := c.Turns, []string(nil)
	if len(turns) > 0 && (turns[0].Role == "system" || turns[0].Role == "developer") {
		instructions, turns = turns[0].Texts, turns[1:]
	}
	out := []message{{author: "system", texts: []string{c.system()}}}
	if joined := strings.Join(instructions, ""); joined != "" || len(c.Tools) > 0 {
		first, err := developer(instructions, c.Tools)
		if err != nil {
			return nil, err
		}
		out = append(out, first)
	}
	names := map[string]string{}
	for i := range turns {
		for _, call := range turns[i].Calls {
			names[call.ID] = call.Name
		}
	}
	for i := range turns {
		t := &turns[i]
		switch t.Role {
		case "assistant":
			out = t.assistant(out)
		case "tool":
			out = append(out, message{author: "functions." + names[t.CallID], channel: "commentary", tool: true, texts: []string{strings.Join(t.Texts, "")}})
		case "system", "developer":
			if t.Texts != nil {
				further, _ := developer(t.Texts, nil)
				out = append(out, further)
			}
		case "user":
			out = append(out, message{author: t.Role, texts: t.Texts})
		default:
			return nil, ErrRefused
		}
	}
	return out, nil
}

// system is the first message of each prompt.
func (c *Conversation) system() string {
	effort := c.Effort
	if effort == "" {
		effort = "medium"
	}
	text := "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: " + c.Day +
		"\n\nReasoning: " + effort + "\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
	if len(c.Tools) > 0 {
		text += "\nCalls to these tools must go to the commentary channel: 'functions'."
	}
	return text
}

// developer is a message with instructions, nil for none, and tools.
func developer(instructions []string, tools []Tool) (message, error) {
	var sections []string
	if instructions != nil {
		sections = append(sections, "# Instructions", strings.Join(instructions, ""))
	}
	if len(tools) > 0 {
		types, err := namespace(tools)
		if err != nil {
			return message{}, err
		}
		sections = append(sections, "# Tools", types)
	}
	return message{author: "developer", texts: []string{strings.Join(sections, "\n\n")}}, nil
}

// assistant appends a turn of the assistant's: what it says before it calls tools comes
// before its reasoning, else behind it.
func (t *Turn) assistant(out []message) []message {
	if len(t.Calls) > 0 {
		if preamble := strings.Join(t.Texts, ""); preamble != "" {
			out = append(out, message{author: "assistant", channel: "commentary", texts: []string{preamble}})
		}
	}
	if t.Thoughts != "" {
		out = append(out, message{author: "assistant", channel: "analysis", texts: []string{t.Thoughts}})
	}
	for _, c := range t.Calls {
		out = append(out, message{author: "assistant", channel: "commentary", calls: c.Name, texts: []string{c.Arguments}})
	}
	if len(t.Calls) == 0 && len(t.Texts) > 0 && t.Texts[0] != "" {
		out = append(out, message{author: "assistant", channel: "final", texts: t.Texts})
	}
	return out
}

// withoutThoughts drops reasoning of before the last answer.
func withoutThoughts(all []message) []message {
	last := len(all) - 1
	for last > 0 && all[last].channel != "final" {
		last--
	}
	out := all[:0]
	for i, m := range all {
		if i >= last || m.channel != "analysis" {
			out = append(out, m)
		}
	}
	return out
}

type pieces []Piece

func (p *pieces) control(token string) { *p = append(*p, Piece{token, true}) }

func (p *pieces) text(s string) {
	if s != "" {
		*p = append(*p, Piece{Text: s})
	}
}

func (p *pieces) message(m *message) {
	p.control(Start)
	channel, end := m.channel, End
	switch {
	case m.channel == "commentary" && m.author == "assistant" && m.calls != "":
		p.text(m.author + " to=functions." + m.calls)
		channel, end = "commentary json", Called
	case m.tool:
		p.text(m.author)
		channel = "commentary to=assistant"
	default:
		p.text(m.author)
	}
	if channel != "" {
		p.control(Channel)
		p.text(channel)
	}
	p.control(Body)
	for _, t := range m.texts {
		p.text(t)
	}
	p.control(end)
}

// ToolOf returns a tool by its JSON, as chat completions have it; ok is false for what is none.
func ToolOf(v any) (t Tool, ok bool) {
	d, ok := v.(*jinja.Dict)
	if !ok {
		return t, false
	}
	kind, _ := d.Get("type")
	of, _ := d.Get("function")
	f, ok := of.(*jinja.Dict)
	if !ok || kind != any("function") {
		return t, false
	}
	name, _ := f.Get("name")
	if t.Name, ok = name.(string); !ok {
		return t, false
	}
	switch text, _ := f.Get("description"); text := text.(type) {
	case nil:
	case string:
		t.Description = text
	default:
		return t, false
	}
	t.Parameters, _ = f.Get("parameters")
	if _, is := t.Parameters.(*jinja.Dict); t.Parameters != nil && !is {
		return t, false
	}
	return t, true
}
